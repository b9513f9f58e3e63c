"""EleutherAI sparsify's names (SparseCoderConfig, TrainConfig and RunConfig of eai-sparsify 1.3.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pullback.training.names.translation import Translation, flat

# What sparsify trains with where nothing is said. Its optimizer would be signum, which is not here.
DEFAULTS = {
    "expansion_factor": 32,
    "batch_size": 32,
    "ctx_len": 2048,
    "lr": None,
    "lr_warmup_steps": 1000,
    "auxk_alpha": 0.0,
    "dead_feature_threshold": 10_000_000,
    "adam_beta2": 0.999,
    "normalize_decoder": True,
    "transcode": False,
}
SITES = {"mlp": "hook_mlp_out", "self_attn": "hook_attn_out", "attn": "hook_attn_out", "attention": "hook_attn_out"}
HOOKPOINT = re.compile(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+|\*)\.(\w+)")
RENAMED = {
    "lr_warmup_steps": "lr_warm_up_steps",
    "dead_feature_threshold": "dead_feature_window",
    "exclude_tokens": "exclude_special_tokens",
}
REFUSED = {
    "activation": (("topk",), "groupmax takes the largest of k groups, and is not trained here; use topk or batchtopk"),
    "multi_topk": ((False,), "several k in one loss are not trained here; matryoshka_widths nests features instead"),
    "loss_fn": (("fvu",), "only the error of activations is trained; its effect on the model is in pullback eval"),
    "optimizer": (("adam", "lazy_adam"), "only Adam is here; write optimizer='adam', with a rate for it"),
    "finetune": ((), "training starts from new weights; a stopped run goes on with resume=True"),
    "layer_stride": ((1,), "list the layers: layers=[0, 2, 4]"),
    "load_in_8bit": ((False,), "load the model as you like and pass it"),
    "k_decay_steps": ((0,), "write k_start=10 * width and k_anneal_steps, which say the same"),
}
ELSEWHERE = {
    "distribute_modules": "see docs/TRAINING.md for several processes",
    "save_every": "checkpoint_every_tokens of train",
    "save_best": "keep_checkpoints of train keeps the newest",
    "save_dir": "output_path and checkpoint_path of train",
    "log_to_wandb": "LoggingConfig(log_to_wandb=True)",
    "run_name": "LoggingConfig(run_name=...)",
    "wandb_log_frequency": "LoggingConfig(log_every_n_steps=...)",
    "model": "the first argument of train",
    "dataset": "the second argument of train",
    "split": "pass the split itself",
    "hf_token": "load model and data as you like and pass them",
    "revision": "load the model as you like and pass it",
    "resume": "resume=True of train, with checkpoint_path",
    "text_column": "Documents(dataset, column=...)",
    "shuffle_seed": "seed orders batches as well",
    "data_preprocessing_num_proc": "texts are read as they are used",
    "data_args": "load the dataset as you like and pass it",
}
# Where TrainConfig's own setting is given, sparsify's default for the same thing has nothing to say.
TWINS = {
    "num_latents": "expansion_factor",
    "d_sae": "expansion_factor",
    "context_size": "ctx_len",
    "train_batch_size_tokens": "batch_size",
    "lr_warm_up_steps": "lr_warmup_steps",
    "dead_feature_window": "dead_feature_threshold",
    "decoder_norm": "normalize_decoder",
    "hook_name": "transcode",
}


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, those of a nested `sae` among them, and what sparsify does where they say nothing."""
    given = flat(options)
    silent = {TWINS[name] for name in given if name in TWINS}
    return {name: value for name, value in DEFAULTS.items() if name not in silent} | given


def from_sparsify(options: Mapping[str, Any], own: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of TrainConfig that say the same, and notes.

    Args:
        options: sparsify's, and any of TrainConfig under their own names. `d_in` helps: the
            width of the activations, from which sparsify takes its learning rate and auxk_k.
        own: names of TrainConfig's settings.

    Raises:
        ValueError: what cannot be had here; the sentence says what can.
    """
    said = Translation("sparsify", options)
    said.refuse(REFUSED)
    said.leave(ELSEWHERE)
    d_in = said.take("d_in")
    _features(said, d_in)
    _hooks(said)
    _batches(said)
    if "lr" in said and said.peek("lr") is None:
        said.take("lr")
        _rate(said)
    if d_in is not None and "auxk_k" not in said:
        said.put(auxk_k=max(1, d_in // 2))
    seeds = said.take("init_seeds")
    if seeds is not None:
        if len(seeds) != 1:
            raise ValueError("sparsify's init_seeds: give train configs=[...], one for each seed, on the same batches")
        said.put(seed=seeds[0])
    said.rename(RENAMED)
    said.finish(own)
    return said.settings, said.notes


def _features(said: Translation, d_in: int | None) -> None:
    latents, factor = said.take("num_latents"), said.take("expansion_factor")
    if latents:
        said.put(d_sae=latents)
        said.note("num_latents is d_sae here")
    elif factor is not None and d_in is not None:
        said.put(d_sae=factor * d_in)
    elif factor is not None:
        said.put(expansion_factor=factor)


def _hooks(said: Translation) -> None:
    """sparsify names modules: a transcoder goes from the module's input to its output, an autoencoder stays there."""
    if not ("hookpoints" in said or "transcode" in said):
        return
    points, transcode = said.take("hookpoints"), bool(said.take("transcode"))
    if said.take("normalize_decoder") and not transcode:
        said.put(decoder_norm=True)
    found = [HOOKPOINT.fullmatch(point) for point in points or ["layers.*.mlp"]]
    sites = {match[2] for match in found if match is not None}
    if None in found or len(sites) != 1 or not sites <= set(SITES):
        raise ValueError(
            f"sparsify's hookpoints={points!r}: name MLPs or attentions, like layers.3.mlp or h.*.attn, of one kind; "
            "or give layers, hook_name and hook_name_out"
        )
    out = SITES[sites.pop()]
    if transcode and out != "hook_mlp_out":
        raise ValueError("sparsify's transcode: transcoders stand in for MLPs; leave it out for an attention's output")
    said.put(hook_name_out=out, hook_name="mlp.hook_in" if transcode else out)
    said.note(f"hookpoints: {'transcoders from mlp.hook_in to' if transcode else 'autoencoders at'} {out}")
    layers = [match[1] for match in found if match is not None]
    if points is not None and "*" not in layers:
        said.put(layers=sorted(map(int, layers)))


def _batches(said: Translation) -> None:
    """sparsify counts sequences, each of ctx_len tokens."""
    length, batch, examples = said.take("ctx_len"), said.take("batch_size"), said.take("max_examples")
    length = length or said.peek("context_size")
    if length is not None:
        said.put(context_size=length)
    for name, value in (("batch_size", batch), ("max_examples", examples)):
        if value is not None and length is None:
            raise ValueError(f"sparsify's {name} counts sequences: give ctx_len as well, their length")
    if batch is not None:
        tokens = batch * length
        said.put(train_batch_size_tokens=tokens, store_batch_size_prompts=batch)
        said.note(f"batch_size counts sequences: {batch} of {length} tokens make train_batch_size_tokens={tokens}")
    if examples is not None:
        said.put(training_tokens=examples * length)


def _rate(said: Translation) -> None:
    """sparsify's rule for Adam."""
    F = said.settings.get("d_sae")
    if F is None:
        said.note("lr: sparsify's own needs the width; give d_in=..., or lr")
        return
    said.put(lr=2e-4 / (F / 2**14) ** 0.5)
    said.note(f"lr: sparsify's rule for Adam, 2e-4 / sqrt(d_sae / 2^14), makes {said.settings['lr']:.2g}")
