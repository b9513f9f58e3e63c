"""Every rule's loss on dense matrices, in autograd: the oracle of the sparse gradients."""

from __future__ import annotations

import torch

from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK


class Jump(torch.autograd.Function):
    """h [h > theta] and [h > theta], with the straight-through derivatives of a rectangle of width eps."""

    @staticmethod
    def forward(ctx, h, theta, eps):
        ctx.save_for_backward(h, theta)
        ctx.eps = eps
        return h * (h > theta), (h > theta).to(h.dtype)

    @staticmethod
    def backward(ctx, by_z, by_step):
        h, theta = ctx.saved_tensors
        window = ((h - theta).abs() < ctx.eps / 2).to(h.dtype)
        by_theta = (-(theta / ctx.eps) * window * by_z - window / ctx.eps * by_step).sum(0)
        return by_z * (h > theta), by_theta, None


def dense_loss(step, x, y, seen=None):
    """The loss of `step` on x, y as its next step sees it, and its gradients by name of the weight.

    seen: all targets so far, y included.
    """
    tc, recipe, t = step.transcoder, step.recipe, step.n_steps
    W = {name: w.detach().clone().requires_grad_() for name, w in tc.named_parameters()}
    W |= {name: w.detach().clone().requires_grad_() for name, w in step.rule.weights.items()}
    n = len(x)
    seen = y if seen is None else seen
    dead = step.tokens_since_fired >= step.dead_feature_window
    h = x @ W["W_enc"].T + W["b_enc"]
    norms = W["W_dec"].norm(dim=1) if recipe.weight_by_decoder_norm else torch.ones(tc.d_sae, dtype=x.dtype)
    penalty = torch.zeros((), dtype=x.dtype)
    rule = step.activation
    if isinstance(rule, TopK):
        z = TopK(recipe.k_at(t, rule.k), rule.relu).dense(h)
    elif isinstance(rule, BatchTopK):
        z = h * (BatchTopK(recipe.k_at(t, rule.k)).dense(h.detach()) != 0)
    elif isinstance(rule, ReLU):
        z = h.relu()
        penalty = recipe.l1_at(t) * (z * norms).sum() / n
    else:
        assert isinstance(rule, JumpReLU)
        theta = W["log_theta"].exp()
        z, active = Jump.apply(h, theta, recipe.jumprelu_bandwidth)
        if recipe.jumprelu_sparsity_loss_mode == "tanh":
            active = (recipe.jumprelu_tanh_scale * z * norms).tanh()
        penalty = recipe.l0_at(t) * active.sum() / n
        lift = ((theta - h).relu() * norms)[:, dead].sum() / n
        penalty = penalty + recipe.pre_act_loss_coefficient * lift
    skip = x @ W["W_skip"].T if "W_skip" in W else 0
    widths = sorted({*(recipe.matryoshka_widths or ()), tc.d_sae})
    made = [z[:, :m] @ W["W_dec"][:m] + W["b_dec"] + skip for m in widths]
    loss = step.objective.loss
    scale = n * (seen - seen.mean(0)).square().sum(1).mean() if loss == "fvu" else n
    if loss == "reference":
        scale = y.norm(dim=1, keepdim=True) * y.numel()
    total = sum(((y - one).square() / scale).sum() for one in made) + penalty
    left = (y - made[-1]).detach()
    if dead.any() and step.auxk_alpha:
        k = min(step.auxk_k, int(dead.sum()))
        aux = TopK(k, isinstance(rule, TopK | BatchTopK)).dense(h[:, dead]) @ W["W_dec"][dead]
        total = total + step.auxk_alpha * ((left - aux).square() / scale).sum() * (k / step.auxk_k)
    if dead.any() and isinstance(rule, ReLU) and loss == "reference":
        left = left if recipe.residual == "target" else (x - made[-1]).detach()
        ghost = h[:, dead].exp() @ W["W_dec"][dead]
        norm = left.norm(dim=1, keepdim=True)
        ghost = ghost * (norm / (1e-6 + 2 * ghost.norm(dim=1, keepdim=True))).detach()
        elements = (ghost - left).square() / norm
        errors = (made[-1] - y).square() / y.norm(dim=1, keepdim=True)
        total = total + ((errors / (elements + 1e-6)).detach() * elements).mean()
    total.backward()
    return total.detach(), {name: w.grad for name, w in W.items() if w.grad is not None}
