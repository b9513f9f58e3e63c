"""SAELens' names (LanguageModelSAERunnerConfig and its TrainingSAEConfigs, version 6.54)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pullback.training.names.translation import Translation, flat

# What SAELens trains with where nothing is said, as far as it differs.
DEFAULTS = {
    "training_tokens": 2_000_000,
    "train_batch_size_tokens": 4096,
    "context_size": 128,
    "n_batches_in_buffer": 20,
    "lr": 3e-4,
    "lr_scheduler_name": "constant",
    "lr_warm_up_steps": 0,
    "lr_decay_steps": 0,
    "adam_beta2": 0.999,
    "dead_feature_window": 1000,
    "seed": 42,
}
HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
BF16 = (
    "the encoder's product is in bfloat16 already where that is faster, certified to find the exact features, and "
    "weights and moments stay float32"
)
REFUSED = {
    "apply_b_dec_to_input": (
        (False,),
        "b_enc takes its place, since W_enc (x - b_dec) + b_enc is W_enc x + another b_enc; leave it out",
    ),
    "reshape_activations": (("none",), "only activations of width d_model are read"),
    "hook_head_index": ((), "single heads are not read"),
    "lp_norm": ((1, 1.0), "the penalty of ReLU is L1"),
    "jumprelu_ste_to_input": ((False,), "the straight-through estimator moves thresholds only"),
    "target_l0": ((), "sweep l0_coefficient instead: configs=[...]"),
    "use_matryoshka_aux_loss": ((False,), "the auxiliary loss explains what all features leave over"),
    "from_pretrained_path": ((), "training starts from new weights"),
    "seqpos_slice": (((None,), [None]), "say which tokens count by mask="),
    "n_restart_cycles": ((1,), "there are no restarts; use lr_scheduler_name='cosine'"),
    "autocast": ((False,), f"{BF16}; leave it out. The model's own pass has autocast_lm"),
}
ELSEWHERE = {
    "model_name": "pass the model",
    "model_class_name": "pass the model",
    "model_kwargs": "pass the model",
    "model_from_pretrained_kwargs": "pass the model",
    "compile_llm": "pass the model, compiled",
    "llm_compilation_mode": "pass the model, compiled",
    "compile_sae": "the step's kernels are compiled",
    "sae_compilation_mode": "the step's kernels are compiled",
    "llm_device": "the model is used where it is",
    "act_store_device": "rows wait where they are trained on; act_store_dtype='bfloat16' halves their memory",
    "hook_eval": "pullback eval",
    "dataset_path": "pass the dataset",
    "dataset_trust_remote_code": "pass the dataset",
    "streaming": "pass the dataset",
    "is_dataset_tokenized": "pass the dataset",
    "use_chat_formatting": "pass formatted texts",
    "use_cached_activations": "train_on_cache",
    "cached_activations_path": "train_on_cache",
    "activations_mixing_fraction": "half of the mixing buffer is kept at each draw",
    "disable_concat_sequences": "prompts are taken whole, documents are packed",
    "sequence_separator_token": "documents begin with BOS as the model's tokenizer has it",
    "prepend_bos": "texts get BOS as the model does by default, tensors are taken as given",
    "feature_sampling_window": "dead features are those that have not fired for dead_feature_window tokens",
    "dead_feature_threshold": "dead features are those that have not fired for dead_feature_window tokens",
    "n_eval_batches": "pullback eval",
    "eval_batch_size_prompts": "pullback eval",
    "logger": "LoggingConfig of pullback, an argument of train",
    "n_checkpoints": "checkpoint_every_tokens of train",
    "checkpoint_path": "an argument of train",
    "save_final_checkpoint": "the end of a run is always a checkpoint",
    "output_path": "an argument of train",
    "resume_from_checkpoint": "resume=True of train, with checkpoint_path",
    "verbose": "an argument of train",
    "sae_lens_version": "not recorded",
    "sae_lens_training_version": "not recorded",
    "n_batches_for_norm_estimate": "the norm is that of the first step's rows",
    "use_sparse_activations": "activations are always sparse",
    "metadata": "hooks and the model's reading are recorded with each transcoder",
}


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, those of a nested `sae` among them, and what SAELens does where they say nothing."""
    return DEFAULTS | flat(options)


def from_saelens(options: Mapping[str, Any], own: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of TrainConfig that say the same, and notes.

    Args:
        options: SAELens', and any of TrainConfig under their own names.
        own: names of TrainConfig's settings.

    Raises:
        ValueError: what cannot be had here; the sentence says what can.
    """
    said = Translation("SAELens", options)
    said.refuse(REFUSED)
    said.leave(ELSEWHERE)
    _hooks(said)
    _schedule(said)
    _dictionary(said)
    window = said.take("dead_feature_window")
    if window is not None:
        tokens = window * said.peek("train_batch_size_tokens", 1)
        said.put(dead_feature_window=tokens)
        said.note(f"dead_feature_window={window} counts training steps there and tokens here: {tokens:,}")
    if "prefetch_llm_batches" in said:
        said.put(prefetch=int(said.take("prefetch_llm_batches")))
    said.finish(own)
    return said.settings, said.notes


def _hooks(said: Translation) -> None:
    """SAELens names one layer's place in full."""
    hooks = {name: said.take(name) for name in ("hook_name", "hook_name_out") if name in said}
    layers = set()
    for name, hook in hooks.items():
        match = HOOK.fullmatch(hook)
        if match is not None:
            layers.add(int(match[1]))
            hook = match[2]
        said.put(**{name: hook})
    if len(layers) > 1:
        raise ValueError(f"SAELens' {hooks}: a transcoder reads and writes in one layer")
    if layers and "layers" not in said:
        said.put(layers=sorted(layers))
    if "hook_name" in hooks and "hook_name_out" not in hooks:
        said.put(hook_name_out=said.settings["hook_name"])
        said.note("no hook_name_out was given: an autoencoder at hook_name, as SAELens trains")


def _schedule(said: Translation) -> None:
    name, decay = said.take("lr_scheduler_name"), said.take("lr_decay_steps") or None
    if name == "cosineannealingwarmrestarts":
        raise ValueError(f"SAELens' lr_scheduler_name={name!r}: there are no restarts; use 'cosine'")
    if name == "constant" and said.take("lr_end") is not None:
        said.note("lr_end is left out: a constant rate has none")
    if name == "constant" and decay is not None:
        name = "linear"
        said.note(f"lr_scheduler_name='constant' with lr_decay_steps is 'linear' here, falling over the last {decay}")
    elif decay is not None and str(name).startswith("cosine"):
        raise ValueError(
            "SAELens' lr_decay_steps after a cosine: here the cosine ends the run, at lr_end; leave lr_decay_steps out"
        )
    if name is not None:
        said.put(lr_scheduler_name=name)
    if decay is not None:
        said.put(lr_decay_steps=decay)


def _dictionary(said: Translation) -> None:
    d_in, architecture = said.take("d_in"), said.peek("architecture")
    if said.take("rescale_acts_by_decoder_norm"):
        said.put(decoder_norm=True)
        said.note("rescale_acts_by_decoder_norm is decoder_norm=True here: rows of norm 1 need no rescaling")
    norm = said.take("decoder_init_norm")
    if norm not in (None, 0.1):
        said.note(f"decoder_init_norm={norm} is left out: decoder rows start at a tenth of the encoder's")
    if "aux_loss_coefficient" in said:
        said.put(auxk_alpha=said.take("aux_loss_coefficient"))
        said.note("aux_loss_coefficient is auxk_alpha here")
        if d_in is not None and "auxk_k" not in said:
            said.put(auxk_k=max(1, d_in // 2))
    if architecture == "jumprelu" and "loss" not in said:
        said.put(loss="paper")
        said.note("loss='paper', the squared error itself, so that l0_coefficient means what it means in SAELens")
    if said.peek("pre_act_loss_coefficient") is None:
        said.take("pre_act_loss_coefficient")
    k = said.peek("k")
    if k is not None and k != int(k):
        raise ValueError(f"SAELens' k={k}: a whole number of features a token is kept")
    if k is not None:
        said.put(k=int(said.take("k")))
