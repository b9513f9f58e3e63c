"""The compiled CPU kernels. A view is (address, bytes an element, shape, strides)."""

_View = tuple[int, int, tuple[int, ...], tuple[int, ...]]

openmp: bool
__file__: str

def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def cpu_features() -> dict[str, bool]: ...
def max_threads() -> int: ...
def topk_select(h: _View, values: _View, indices: _View, relu: bool) -> None: ...
def topk_certified(
    h: _View,
    x: _View,
    W: _View,
    b: _View,
    x_norms: _View,
    W_norms: _View,
    values: _View,
    indices: _View,
    relu: bool,
) -> None: ...
def row_norms(rows: _View, norms: _View) -> None: ...
def decode_csr(indptr: _View, indices: _View, values: _View, W_dec: _View, b_dec: _View | None, out: _View) -> None: ...
def sampled_dot(g: _View, W: _View, indptr: _View, indices: _View, out: _View) -> None: ...
def segment_outer(indptr: _View, indices: _View, values: _View, x: _View, out: _View) -> None: ...
def contract(G: _View, indptr: _View, indices: _View, values: _View, W_dec: _View, out: _View) -> None: ...
def shadow_rows(rows: _View, w16: _View, norms: _View, rests: _View) -> None: ...
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
