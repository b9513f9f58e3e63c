// Gradients of targets on their way down a frozen model, a tile of them after the other.
#pragma once

#include <functional>
#include <vector>

#include "view.h"

namespace pullback {

// A tile is some targets of one prompt, which goes through all steps before the next one does: its gradients, at the
// prompt's first positions, stay in the cache, and its edges are written where they will be read. Steps borrow what
// they are given until `run` has returned; they throw std::invalid_argument as ops do.
class Descent {
 public:
  // Of tiles, int64 (n_tiles) each: the prompt, its positions, the first target and their number, where the first
  // target's row of edges begins in `values`, and how long their rows are. Of targets: row and pos int64 (B), factor
  // (B): each stands for factor times row `row` of a table, at position pos. All edges of the tiles are written, to
  // values, and of each target how many are not 0, to nonzero (B).
  struct Tiles {
    View prompts, positions, firsts, counts, begins, lengths;
  };
  Descent(const Tiles& tiles, const View& row, const View& factor, const View& pos, const View& values,
          const View& nonzero, int64_t n_prompts, int64_t d);

  // Gradients at the stream before an attention of what heads take of a table, as spread_heads.
  void spread(const View& taken, const View& mixing, const View& scale, const View* standing, bool add);
  // From attention's output to the stream that it reads, added: to_z (d, H d_head), from_v (n_kv d_head, d).
  void through_heads(const View& to_z, const View& mixing, const View& scale, const View& from_v, int64_t H);

  // Edges go to the columns `to` int64 (n_tiles) of a row and the ones behind it. From the features of n_pos positions
  // a prompt, CSR over all prompts, with decoder rows W:
  void contract(const View& indptr, const View& indices, const View& values, const View& W, int64_t n_pos,
                const View& to);
  // ... from vectors that stand at every position, (Q, n_pos, d) each:
  void contract_leaves(const std::vector<View>& leaves, const std::vector<View>& to);
  // ... from what sources first, first + 1, ... bring to every position, (Q, n_pos, n, d), nothing before their own:
  void contract_written(const View& written, int64_t first, const View& to);
  // ... from the vectors u (Q, n_pos, d) at the targets' own positions, to rows of a table:
  void contract_own(const View& table, const View& u, const View& to);

  void run() const;

 private:
  // Decoder rows of one prompt's features, as panels of positions: packed by the first of its tiles, for all of them.
  struct Panels {
    int64_t prompt = -1;
    std::vector<char> memory;
  };
  struct Tile {
    int64_t index, prompt, P, first, n;
    int64_t lowest;                   // position of a target
    char *R, *at_z, *at_v, *weights;  // (P, n, d), (P, n, H d_head), (P, n, n_kv d_head), room for patterns
    char* edges;
    int64_t length;
    Panels* panels;
  };
  using Step = std::function<void(const Tile&)>;

  // First position at which gradients may differ from 0, as the steps stand so far.
  std::function<int64_t(const Tile&)> first_position() const;

  template <class T>
  void contract_by_panels(const int64_t* indptr, const View& indices, const View& values, const View& W, int64_t n_pos,
                          const View& to);
  void count_edges(const Tile& tile) const;
  void require_table(const char* op, int64_t U) const;
  void require_columns(const char* op, const View& to, const std::function<int64_t(int64_t)>& width) const;
  int64_t of_tile(const View& column, int64_t t) const { return column.as<int64_t>()[t]; }

  Tiles tiles_;
  View row_, factor_, pos_, values_, nonzero_;
  int64_t n_tiles_, n_prompts_, d_, itemsize_;
  int64_t most_positions_ = 0, most_rows_ = 0;  // of any tile: P, and P n
  int64_t at_z_ = 0, at_v_ = 0, weights_ = 0;   // scratch: columns of both, elements
  std::vector<int64_t> panels_;                 // the room that each takes
  bool alone_ = false;                          // whether targets still stand at their own positions, and nowhere else
  std::vector<Step> steps_;
};

}  // namespace pullback
