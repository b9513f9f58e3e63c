"""The compiled CPU kernels. A view is (address, bytes an element, shape, strides)."""

from collections.abc import Sequence

_View = tuple[int, int, tuple[int, ...], tuple[int, ...]]

openmp: bool
__file__: str

def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def cpu_features() -> dict[str, bool]: ...
def max_threads() -> int: ...
def prefer_huge_pages(memory: _View) -> None: ...
def topk_select(h: _View, values: _View, indices: _View, relu: bool) -> None: ...
def screen_block(
    y: _View,
    first: int,
    bias: _View,
    norms: _View,
    rests: _View | None,
    x_norms: _View,
    x_rests: _View | None,
    gamma: float,
    rho: float,
    k: int,
    thresholds: _View | None,
    candidates: list[_View],
) -> None: ...
def has_tiles() -> bool: ...
def pack_tiles(x: _View, panels: _View) -> None: ...
def screen_product(
    panels: _View,
    W: _View,
    first: int,
    bias: _View,
    norms: _View,
    rests: _View,
    x_norms: _View,
    x_rests: _View,
    gamma: float,
    rho: float,
    k: int,
    thresholds: _View | None,
    candidates: list[_View],
) -> None: ...
def settle_topk(
    x: _View, W: _View, b: _View, candidates: list[_View], values: _View, indices: _View, relu: bool
) -> None: ...
def settle_threshold(x: _View, W: _View, b: _View, thresholds: _View, candidates: list[_View]) -> None: ...
def evaluate_rows(x: _View, W: _View, b: _View, h: _View) -> None: ...
def norm_rows(rows: _View, norms: _View) -> None: ...
def shadow_rows(rows: _View, w16: _View, norms: _View, rests: _View) -> None: ...
def decode_csr(indptr: _View, indices: _View, values: _View, W_dec: _View, b_dec: _View | None, out: _View) -> None: ...
def sampled_dot(g: _View, W: _View, indptr: _View, indices: _View, out: _View) -> None: ...
def segment_outer(indptr: _View, indices: _View, values: _View, x: _View, out: _View) -> None: ...
def decode_residual(
    values: _View,
    indices: _View,
    W: _View,
    bias: _View | None,
    y: _View,
    relu: bool,
    residual: _View,
    dots: _View,
    losses: _View,
) -> None: ...
def feature_order(indices: _View, starts: _View, order: _View) -> None: ...
def column_moments(y: _View, center: _View, sums: _View) -> float: ...
def gradient_norm(grad: tuple[_View, ...], W_dec: _View, remove_parallel: bool) -> float: ...
def gradient_bound(grad: tuple[_View, ...], F: int) -> float: ...
def adam(
    grad: tuple[_View, ...],
    weights: tuple[_View, ...],
    exp_avg: tuple[_View, ...],
    exp_avg_sq: tuple[_View, ...],
    grad_scale: float,
    lr: float,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    remove_parallel: bool,
    unit_norm: bool,
    lazy: bool,
    shadow: tuple[_View, _View, _View] | None,
) -> None: ...
def contract(G: _View, indptr: _View, indices: _View, values: _View, W_dec: _View, out: _View, add: bool) -> None: ...
def spread_heads(
    taken: _View,
    row: _View,
    factor: _View,
    mixing: _View,
    scale: _View,
    pos: _View,
    standing: _View | None,
    out: _View,
    add: bool,
) -> None: ...
def mix_back(at_z: _View, mixing: _View, scale: _View, out: _View) -> None: ...
def contract_leaves(R: _View, leaves: list[_View], starts: Sequence[int], out: _View) -> None: ...
def contract_written(R: _View, written: _View, first: int, out: _View) -> None: ...
def coactivation_counts(
    A_indptr: _View, A_indices: _View, B_indptr: _View, B_indices: _View, counts: _View, F_b: int
) -> None: ...
def coactivation_sums(
    A_indptr: _View,
    A_indices: _View,
    A_values: _View,
    B_indptr: _View,
    B_indices: _View,
    B_values: _View,
    indptr: _View,
    indices: _View,
    products: _View,
    gated: _View,
    F_b: int,
) -> None: ...
def coactivation_block(
    A_indptr: _View,
    A_indices: _View,
    A_values: _View,
    B_indptr: _View,
    B_indices: _View,
    B_values: _View,
    products: _View,
    gated: _View,
) -> None: ...
def union_counts(
    X_indptr: _View, X_indices: _View, Y_indptr: _View, Y_indices: _View, counts: _View, F_b: int
) -> None: ...
def union_sums(
    X_indptr: _View,
    X_indices: _View,
    X_products: _View,
    X_gated: _View,
    Y_indptr: _View,
    Y_indices: _View,
    Y_products: _View,
    Y_gated: _View,
    indptr: _View,
    indices: _View,
    products: _View,
    gated: _View,
    F_b: int,
) -> None: ...

class Descent:
    def __init__(
        self,
        tiles: Sequence[_View],
        row: _View,
        factor: _View,
        pos: _View,
        values: _View,
        nonzero: _View,
        n_prompts: int,
        d: int,
    ) -> None: ...
    def spread(self, taken: _View, mixing: _View, scale: _View, standing: _View | None, add: bool) -> None: ...
    def through_heads(self, to_z: _View, mixing: _View, scale: _View, from_v: _View, H: int) -> None: ...
    def contract(self, indptr: _View, indices: _View, values: _View, W: _View, n_pos: int, to: _View) -> None: ...
    def contract_leaves(self, leaves: Sequence[_View], to: Sequence[_View]) -> None: ...
    def contract_written(self, written: _View, first: int, to: _View) -> None: ...
    def contract_own(self, table: _View, u: _View, to: _View) -> None: ...
    def run(self) -> None: ...
