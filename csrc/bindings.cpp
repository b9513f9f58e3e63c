// The Python face of the CPU kernels. A tensor comes as (address, bytes an element, shape, strides); the module knows
// nothing of torch. The interpreter lock is released while a kernel runs.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "descent.h"
#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace py = pybind11;

namespace pybind11::detail {

template <>
struct type_caster<pullback::View> {
  PYBIND11_TYPE_CASTER(pullback::View, const_name("tuple[int, int, tuple[int, ...], tuple[int, ...]]"));

  bool load(handle source, bool) {
    if (!isinstance<tuple>(source)) return false;
    const auto fields = reinterpret_borrow<tuple>(source);
    if (fields.size() != 4) return false;
    value.data = reinterpret_cast<char*>(fields[0].cast<uintptr_t>());
    value.itemsize = fields[1].cast<int64_t>();
    value.shape = fields[2].cast<std::vector<int64_t>>();
    value.strides = fields[3].cast<std::vector<int64_t>>();
    return true;
  }
};

}  // namespace pybind11::detail

namespace pullback {
namespace {

void decode_with_bias(const View& indptr, const View& indices, const View& values, const View& W,
                      const std::optional<View>& bias, const View& out) {
  decode_csr(indptr, indices, values, W, bias ? &*bias : nullptr, out);
}

const View* pointer(const std::optional<View>& view) { return view ? &*view : nullptr; }

void screen_block_of(const View& y, int64_t first, const View& bias, const View& norms,
                     const std::optional<View>& rests, const View& x_norms, const std::optional<View>& x_rests,
                     double gamma, double rho, int64_t k, const std::optional<View>& thresholds,
                     const CandidateViews& candidates) {
  screen_block(y, first, bias, norms, pointer(rests), x_norms, pointer(x_rests), gamma, rho, k, pointer(thresholds),
               candidates);
}

void screen_product_of(const View& panels, const View& W, int64_t first, const View& bias, const View& norms,
                       const View& rests, const View& x_norms, const View& x_rests, double gamma, double rho, int64_t k,
                       const std::optional<View>& thresholds, const CandidateViews& candidates) {
  screen_product(panels, W, first, bias, norms, rests, x_norms, x_rests, gamma, rho, k, pointer(thresholds),
                 candidates);
}

void residual_with_bias(const View& values, const View& indices, const View& W, const std::optional<View>& bias,
                        const View& y, bool relu, const View& residual, const View& dots, const View& losses) {
  decode_residual(values, indices, W, pointer(bias), y, relu, residual, dots, losses);
}

void spread_heads_of(const View& taken, const View& row, const View& factor, const View& mixing, const View& scale,
                     const View& pos, const std::optional<View>& standing, const View& out, bool add) {
  spread_heads(taken, row, factor, mixing, scale, pos, pointer(standing), out, add);
}

void spread_down(Descent& descent, const View& taken, const View& mixing, const View& scale,
                 const std::optional<View>& standing, bool add) {
  descent.spread(taken, mixing, scale, pointer(standing), add);
}

}  // namespace
}  // namespace pullback

PYBIND11_MODULE(_C, m) {
  using namespace pullback;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.doc() = "CPU kernels of pullback";
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("available_isas", &available_isas);
  m.def("set_isa", &set_isa);
  m.def("cpu_features", [] {
    py::dict features;
    for (const auto& [name, present] : cpu_features()) features[py::str(name)] = present;
    return features;
  });
  m.def("max_threads", &max_threads);
  m.def("prefer_huge_pages", &prefer_huge_pages, unlocked);
  m.def("topk_select", &topk_select, unlocked);
  m.def("screen_block", &screen_block_of, unlocked);
  m.def("has_tiles", &has_tiles);
  m.def("pack_tiles", &pack_tiles, unlocked);
  m.def("screen_product", &screen_product_of, unlocked);
  m.def("settle_topk", &settle_topk, unlocked);
  m.def("settle_threshold", &settle_threshold, unlocked);
  m.def("evaluate_rows", &evaluate_rows, unlocked);
  m.def("norm_rows", &norm_rows, unlocked);
  m.def("shadow_rows", &shadow_rows, unlocked);
  m.def("decode_csr", &decode_with_bias, unlocked);
  m.def("sampled_dot", &sampled_dot, unlocked);
  m.def("segment_outer", &segment_outer, unlocked);
  m.def("contract", &contract, unlocked);
  m.def("spread_heads", &spread_heads_of, unlocked);
  m.def("mix_back", &mix_back, unlocked);
  m.def("contract_leaves", &contract_leaves, unlocked);
  m.def("contract_written", &contract_written, unlocked);
  m.def("decode_residual", &residual_with_bias, unlocked);
  m.def("feature_order", &feature_order, unlocked);
  m.def("column_moments", &column_moments, unlocked);
  m.def("gradient_norm", &gradient_norm, unlocked);
  m.def("gradient_bound", &gradient_bound, unlocked);
  m.def("adam", &adam, unlocked);
  m.def("coactivation_counts", &coactivation_counts, unlocked);
  m.def("coactivation_sums", &coactivation_sums, unlocked);
  m.def("coactivation_block", &coactivation_block, unlocked);
  m.def("union_counts", &union_counts, unlocked);
  m.def("union_sums", &union_sums, unlocked);
  m.def("take_spans", &take_spans, unlocked);
  m.def("span_dense", &span_dense, unlocked);
  m.def("span_counts", &span_counts, unlocked);
  m.def("span_pack", &span_pack, unlocked);
  m.def("span_totals", &span_totals, unlocked);
  m.def("span_flow", &span_flow, unlocked);
  m.def("csr_flow", &csr_flow, unlocked);
  m.def("csr_runs", &csr_runs, unlocked);
  m.def("csr_sums", &csr_sums, unlocked);

  py::class_<Descent>(m, "Descent")
      .def(py::init([](const std::array<View, 6>& tiles, const View& row, const View& factor, const View& pos,
                       const View& values, const View& nonzero, int64_t n_prompts, int64_t d) {
             const auto& [prompts, positions, firsts, counts, begins, lengths] = tiles;
             return Descent({prompts, positions, firsts, counts, begins, lengths}, row, factor, pos, values, nonzero,
                            n_prompts, d);
           }),
           unlocked)
      .def("spread", &spread_down)
      .def("through_heads", &Descent::through_heads)
      .def("contract", &Descent::contract)
      .def("contract_leaves", &Descent::contract_leaves)
      .def("contract_written", &Descent::contract_written)
      .def("contract_own", &Descent::contract_own)
      .def("run", &Descent::run, unlocked);
}
