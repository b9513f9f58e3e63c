#include "descent.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "isa.h"
#include "leaves.h"
#include "mixing.h"
#include "ops.h"
#include "parallel.h"

namespace pullback {
namespace {

constexpr int64_t panel_targets = 64;  // of a prompt, for which panels pay

// Memory at the beginning of a cache line.
struct Scratch {
  explicit Scratch(int64_t bytes) : memory(bytes + line), data(memory.data()) {
    data += (line - reinterpret_cast<uintptr_t>(data) % line) % line;
  }
  static constexpr int64_t line = 64;
  std::vector<char> memory;
  char* data;
};

}  // namespace

Descent::Descent(const Tiles& tiles, const View& row, const View& factor, const View& pos, const View& values,
                 const View& nonzero, int64_t n_prompts, int64_t d)
    : tiles_(tiles),
      row_(row),
      factor_(factor),
      pos_(pos),
      values_(values),
      nonzero_(nonzero),
      n_tiles_(tiles.prompts.shape.at(0)),
      n_prompts_(n_prompts),
      d_(d),
      itemsize_(values.itemsize) {
  const char* op = "descent";
  const int64_t B = row.shape.at(0);
  for (const View* column :
       {&tiles.prompts, &tiles.positions, &tiles.firsts, &tiles.counts, &tiles.begins, &tiles.lengths})
    require_dense(op, "a column of tiles", *column, {n_tiles_}, 8);
  require_dense(op, "row", row, {B}, 8);
  require_dense(op, "pos", pos, {B}, 8);
  require_dense(op, "factor", factor, {B}, itemsize_);
  require_dense(op, "values", values, {-1}, itemsize_);
  require_dense(op, "nonzero", nonzero, {B}, 8);
  require(d > 0, "descent: vectors must have a size");
  for (int64_t t = 0; t < n_tiles_; ++t) {
    const int64_t P = of_tile(tiles.positions, t), first = of_tile(tiles.firsts, t), n = of_tile(tiles.counts, t);
    const int64_t q = of_tile(tiles.prompts, t), begin = of_tile(tiles.begins, t), length = of_tile(tiles.lengths, t);
    const bool fits = 0 <= q && q < n_prompts && 0 < P && 0 <= first && 0 <= n && first + n <= B && 0 <= begin &&
                      0 <= length && begin + n * length <= values.shape[0];
    if (!fits) require(false, "descent: tile " + std::to_string(t) + " does not lie within its targets and values");
    for (int64_t b = first; b < first + n; ++b)
      require(0 <= pos.as<int64_t>()[b] && pos.as<int64_t>()[b] < P, "descent: a target stands outside its tile");
    most_positions_ = std::max(most_positions_, P);
    most_rows_ = std::max(most_rows_, P * n);
  }
}

void Descent::require_table(const char* op, int64_t U) const {
  for (int64_t b = 0; b < row_.shape[0]; ++b)
    require(0 <= row_.as<int64_t>()[b] && row_.as<int64_t>()[b] < U, std::string(op) + ": the table has no such row");
}

void Descent::require_columns(const char* op, const View& to, const std::function<int64_t(int64_t)>& width) const {
  require_dense(op, "to", to, {n_tiles_}, 8);
  for (int64_t t = 0; t < n_tiles_; ++t)
    require(0 <= of_tile(to, t) && of_tile(to, t) + width(t) <= of_tile(tiles_.lengths, t),
            std::string(op) + ": rows of edges have no such columns");
}

std::function<int64_t(const Descent::Tile&)> Descent::first_position() const {
  if (alone_) return [](const Tile& tile) { return tile.lowest; };
  return [](const Tile&) { return int64_t{0}; };
}

void Descent::spread(const View& taken, const View& mixing, const View& scale, const View* standing, bool add) {
  const char* op = "descent.spread";
  require_rows(op, "taken", taken, {-1, -1, d_}, itemsize_);
  const int64_t U = taken.shape[0], H = taken.shape[1];
  require_table(op, U);
  require(!add || !standing, "descent.spread: what stands itself is there already where it is added to");
  if (standing) require_rows(op, "standing", *standing, {U, d_}, itemsize_);
  weights_ = std::max(weights_, most_positions_ * H);
  alone_ = H == 0;
  with_float_type(op, itemsize_, [&](auto zero) {
    using T = decltype(zero);
    const Mixing<T> patterns = mixing_of<T>(op, mixing, scale, n_prompts_, H, most_positions_);
    const T* vectors = standing ? standing->as<T>() : nullptr;
    const int64_t stride = standing ? standing->strides[0] : 0;
    steps_.push_back([=, this](const Tile& tile) {
      const Spread<T> spread{taken.as<T>(),
                             taken.strides[0],
                             taken.strides[1],
                             vectors,
                             stride,
                             row_.as<int64_t>() + tile.first,
                             factor_.as<T>() + tile.first,
                             pos_.as<int64_t>() + tile.first,
                             of_prompt(patterns, tile.prompt),
                             tile.P,
                             tile.n,
                             H,
                             d_,
                             reinterpret_cast<T*>(tile.R),
                             add};
      table<T>().spread_columns(spread, 0, tile.n, reinterpret_cast<T*>(tile.weights));
    });
  });
}

void Descent::through_heads(const View& to_z, const View& mixing, const View& scale, const View& from_v, int64_t H) {
  const char* op = "descent.through_heads";
  require_dense(op, "to_z", to_z, {d_, -1}, itemsize_);
  require_dense(op, "from_v", from_v, {-1, d_}, itemsize_);
  const int64_t Z = to_z.shape[1], V = from_v.shape[0];
  require(H > 0 && Z % H == 0 && Z > 0 && V % (Z / H) == 0 && V > 0 && H % (V / (Z / H)) == 0,
          std::string(op) + ": " + std::to_string(H) + " heads cannot read " + std::to_string(Z) + " and share " +
              std::to_string(V));
  const int64_t d_head = Z / H, K = V / d_head;
  at_z_ = std::max(at_z_, Z);
  at_v_ = std::max(at_v_, V);
  weights_ = std::max(weights_, mix_back_scratch(most_positions_));
  alone_ = false;
  with_float_type(op, itemsize_, [&](auto zero) {
    using T = decltype(zero);
    const Mixing<T> patterns = mixing_of<T>(op, mixing, scale, n_prompts_, H, most_positions_);
    steps_.push_back([=, this](const Tile& tile) {
      const Table<T>& kernels = table<T>();
      T *R = reinterpret_cast<T*>(tile.R), *at_z = reinterpret_cast<T*>(tile.at_z);
      T* at_v = reinterpret_cast<T*>(tile.at_v);
      kernels.product_rows(R, tile.P * tile.n, d_, to_z.as<T>(), Z, at_z, false);
      const MixBack<T> mix{at_z, of_prompt(patterns, tile.prompt), tile.P, tile.n, H, K, d_head, at_v};
      kernels.mix_back_columns(mix, 0, 0, tile.n, reinterpret_cast<T*>(tile.weights));
      kernels.product_rows(at_v, tile.P * tile.n, V, from_v.as<T>(), d_, R, true);
    });
  });
}

void Descent::contract(const View& indptr, const View& indices, const View& values, const View& W, int64_t n_pos,
                       const View& to) {
  const char* op = "descent.contract";
  require_rows(op, "W", W, {-1, d_}, itemsize_);
  require_pattern(op, indptr, indices, n_prompts_ * n_pos, W.shape[0]);
  require_dense(op, "values", values, {indices.shape[0]}, itemsize_);
  require(most_positions_ <= n_pos, std::string(op) + ": there are no features at so many positions");
  const int64_t* ptr = indptr.as<int64_t>();
  require_columns(op, to, [&](int64_t t) {
    const int64_t* own = ptr + of_tile(tiles_.prompts, t) * n_pos;
    return own[of_tile(tiles_.positions, t)] - own[0];
  });
  with_float_type(op, itemsize_, [&](auto zero) {
    using T = decltype(zero);
    if (row_.shape[0] >= panel_targets * n_prompts_) return contract_by_panels<T>(ptr, indices, values, W, n_pos, to);
    steps_.push_back([=, this, begin = first_position()](const Tile& tile) {
      const int64_t* own = ptr + tile.prompt * n_pos;
      T* edges = reinterpret_cast<T*>(tile.edges) + of_tile(to, tile.index);
      for (int64_t p = begin(tile); p < tile.P; ++p)
        table<T>().contract_tile(reinterpret_cast<const T*>(tile.R) + p * tile.n * d_, d_, tile.n,
                                 indices.as<int32_t>() + own[p], values.as<T>() + own[p], own[p + 1] - own[p],
                                 W.as<T>(), W.strides[0], d_, edges + own[p] - own[0], tile.length, true);
    });
  });
}

template <class T>
void Descent::contract_by_panels(const int64_t* ptr, const View& indices, const View& values, const View& W,
                                 int64_t n_pos, const View& to) {
  int64_t most = 0;  // features at one position
  for (int64_t r = 0; r < n_prompts_ * n_pos; ++r) most = std::max(most, ptr[r + 1] - ptr[r]);
  const int64_t room = panel_size(most, d_), slot = static_cast<int64_t>(panels_.size());
  panels_.push_back(most_positions_ * room * itemsize_);
  steps_.push_back([=, this, begin = first_position()](const Tile& tile) {
    const Table<T>& kernels = table<T>();
    const int64_t* own = ptr + tile.prompt * n_pos;
    Panels& panels = tile.panels[slot];
    T* packed = reinterpret_cast<T*>(panels.memory.data());
    if (panels.prompt != tile.prompt) {
      for (int64_t p = 0; p < most_positions_; ++p)
        kernels.pack_panel(W.as<T>(), W.strides[0], indices.as<int32_t>() + own[p], own[p + 1] - own[p], d_,
                           packed + p * room);
      panels.prompt = tile.prompt;
    }
    T* edges = reinterpret_cast<T*>(tile.edges) + of_tile(to, tile.index);
    for (int64_t p = begin(tile); p < tile.P; ++p)
      kernels.contract_panel(reinterpret_cast<const T*>(tile.R) + p * tile.n * d_, tile.n, packed + p * room,
                             values.as<T>() + own[p], own[p + 1] - own[p], d_, edges + own[p] - own[0], tile.length);
  });
}

void Descent::contract_leaves(const std::vector<View>& leaves, const std::vector<View>& to) {
  const char* op = "descent.contract_leaves";
  const int64_t count = static_cast<int64_t>(leaves.size());
  require(to.size() == leaves.size(), std::string(op) + ": each leaf must have a place");
  for (const View& u : leaves) {
    require_rows(op, "a leaf", u, {n_prompts_, -1, d_}, itemsize_);
    require(most_positions_ <= u.shape[1], std::string(op) + ": a leaf must have as many positions as tiles");
  }
  for (const View& own : to) require_columns(op, own, [&](int64_t t) { return of_tile(tiles_.positions, t); });
  with_float_type(op, itemsize_, [&](auto zero) {
    using T = decltype(zero);
    steps_.push_back([=, this, begin = first_position()](const Tile& tile) {
      for (int64_t p = begin(tile); p < tile.P; ++p) {
        each_few_leaves<T>(
            count,
            [&](int64_t j) {
              return leaves[j].as<T>() + tile.prompt * leaves[j].strides[0] + p * leaves[j].strides[1];
            },
            [&](int64_t j) { return reinterpret_cast<T*>(tile.edges) + of_tile(to[j], tile.index) + p; },
            [&](const T* const* u, T* const* out, int64_t few) {
              table<T>().leaf_products(reinterpret_cast<const T*>(tile.R) + p * tile.n * d_, d_, tile.n, u, few, d_,
                                       out, tile.length);
            });
      }
    });
  });
}

void Descent::contract_written(const View& written, int64_t first, const View& to) {
  const char* op = "descent.contract_written";
  require_rows(op, "written", written, {n_prompts_, -1, -1, d_}, itemsize_);
  const int64_t S = written.shape[2];
  require(first >= 0 && most_positions_ <= written.shape[1], std::string(op) + ": positions are missing");
  const auto sources_below = [=](int64_t P) { return std::clamp<int64_t>(P - first, 0, S); };
  require_columns(op, to, [&](int64_t t) {
    const int64_t n = sources_below(of_tile(tiles_.positions, t));
    return n ? first + n : 0;
  });
  with_float_type(op, itemsize_, [&](auto zero) {
    using T = decltype(zero);
    std::vector<int32_t> every(S);
    for (int64_t s = 0; s < S; ++s) every[s] = static_cast<int32_t>(s);
    const std::vector<T> ones(S, T(1));
    steps_.push_back([=, this, every = std::move(every), begin = first_position()](const Tile& tile) {
      T* edges = reinterpret_cast<T*>(tile.edges) + of_tile(to, tile.index) + first;
      for (int64_t p = std::max(first, begin(tile)); p < tile.P; ++p)
        table<T>().contract_tile(reinterpret_cast<const T*>(tile.R) + p * tile.n * d_, d_, tile.n, every.data(),
                                 ones.data(), sources_below(p + 1),
                                 written.as<T>() + tile.prompt * written.strides[0] + p * written.strides[1],
                                 written.strides[2], d_, edges, tile.length, true);
    });
  });
}

void Descent::contract_own(const View& table_of, const View& u, const View& to) {
  const char* op = "descent.contract_own";
  require_rows(op, "table", table_of, {-1, d_}, itemsize_);
  require_table(op, table_of.shape[0]);
  require_rows(op, "u", u, {n_prompts_, -1, d_}, itemsize_);
  require(most_positions_ <= u.shape[1], std::string(op) + ": there must be as many vectors as tiles have positions");
  require_columns(op, to, [&](int64_t t) { return of_tile(tiles_.positions, t); });
  with_float_type(op, itemsize_, [&](auto zero) {
    using T = decltype(zero);
    steps_.push_back([=, this](const Tile& tile) {
      T* edges = reinterpret_cast<T*>(tile.edges) + of_tile(to, tile.index);
      for (int64_t b = 0; b < tile.n; ++b) {
        const int64_t target = tile.first + b, pos = pos_.as<int64_t>()[target];
        const T* vector = u.as<T>() + tile.prompt * u.strides[0] + pos * u.strides[1];
        T product = 0, *out = &product;
        table<T>().leaf_products(table_of.as<T>() + row_.as<int64_t>()[target] * table_of.strides[0], 0, 1, &vector, 1,
                                 d_, &out, 1);
        edges[b * tile.length + pos] += factor_.as<T>()[target] * product;
      }
    });
  });
}

void Descent::count_edges(const Tile& tile) const {
  with_float_type("descent", itemsize_, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t b = 0; b < tile.n; ++b)
      nonzero_.as<int64_t>()[tile.first + b] =
          table<T>().count_nonzero(reinterpret_cast<const T*>(tile.edges) + b * tile.length, tile.length);
  });
}

void Descent::run() const {
  const int64_t size = itemsize_, rows = most_rows_;
  parallel_for(n_tiles_, rows * n_tiles_ * d_ * static_cast<int64_t>(steps_.size()),
               [&](int64_t begin, int64_t end, int) {
                 Scratch R(rows * d_ * size), at_z(rows * at_z_ * size), at_v(rows * at_v_ * size);
                 Scratch weights(weights_ * size);
                 std::vector<Panels> panels(panels_.size());
                 for (size_t i = 0; i < panels.size(); ++i) panels[i].memory.resize(panels_[i]);
                 for (int64_t t = begin; t < end; ++t) {
                   const int64_t first = of_tile(tiles_.firsts, t), n = of_tile(tiles_.counts, t);
                   if (n == 0) continue;
                   const int64_t* pos = pos_.as<int64_t>() + first;
                   const Tile tile{t,
                                   of_tile(tiles_.prompts, t),
                                   of_tile(tiles_.positions, t),
                                   first,
                                   n,
                                   *std::min_element(pos, pos + n),
                                   R.data,
                                   at_z.data,
                                   at_v.data,
                                   weights.data,
                                   values_.data + of_tile(tiles_.begins, t) * size,
                                   of_tile(tiles_.lengths, t),
                                   panels.data()};
                   // Edges from what no step reads stay 0; the others are added to while these lines are in the cache.
                   std::memset(tile.edges, 0, n * tile.length * size);
                   for (const Step& step : steps_) step(tile);
                   count_edges(tile);
                 }
               });
}

}  // namespace pullback
