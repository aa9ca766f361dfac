"""Any pretrained Transformer that transformers builds, as an encoder of patches."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from t5ts.errors import WeightsError
from t5ts.model.architecture import HFArchitecture

#: Configuration keys that do not affect what an encoder of patches computes.
BOOKKEEPING = re.compile(
    r"architectures|auto_map|dtype|torch_dtype|transformers_version|_name_or_path|use_cache"
    r"|model_type|vocab_size|tie_.*|.*_token_ids?|.*drop.*|id2label|label2id"
    r"|task_specific_params|summary_.*|problem_type|output_.*|return_dict|chunk_size.*"
    r"|classifier_.*|decoder_bias|sparse_pred.*"  # of heads
)
ADVICE = "Use another checkpoint or a newer transformers; code that comes with one is never run."
#: Why some popular models are refused, and what to use instead.
INSTEAD = {
    "albert": "all its blocks are one, and its tokens are narrower than its blocks; use a BERT",
    "xlm": "its blocks are spread over four lists; use an XLM-RoBERTa",
    "flaubert": "its blocks are spread over four lists; use a CamemBERT",
}


def hf_architecture(
    values: Mapping[str, Any], *, num_layers: int | None, where: str
) -> HFArchitecture:
    """The shape that a `config.json` describes.

    Args:
        values: Its content; what is absent is its model type's default.
        num_layers: Blocks to use, from the first; None for all.
        where: Names the file in errors.

    Raises:
        WeightsError: if transformers has no such model, or it cannot read patches.
    """
    from transformers import AutoConfig

    kind = str(values.get("model_type"))
    without = ("model_type", "auto_map", "transformers_version", "_name_or_path", "torch_dtype")
    with _refusing(f"{where}: {kind}"):  # each model type has checks of its own
        config = AutoConfig.for_model(kind, **{k: v for k, v in values.items() if k not in without})
        depth, width, vocab_size = config.num_hidden_layers, config.hidden_size, config.vocab_size
        if kind in ("t5", "mt5") or config.is_encoder_decoder:
            raise WeightsError("of models with a decoder only a T5 can be used, as backbone=local")
        if not (1 <= depth <= 1000 and 1 <= width <= 100_000 and 1 <= vocab_size <= 10_000_000):
            raise WeightsError(f"{depth} blocks of width {width}, {vocab_size} words: out of range")
        in_use = depth if num_layers is None else num_layers
        if not 1 <= in_use <= depth:
            raise WeightsError(f"backbone.num_layers={num_layers}, but it has {depth} blocks")
        return HFArchitecture(
            model_type=kind,
            d_model=width,
            num_layers=in_use,
            num_heads=config.num_attention_heads,
            vocab_size=vocab_size,
            config={k: v for k, v in config.to_diff_dict().items() if k not in (*without, "dtype")},
        )


def hf_config(arch: HFArchitecture) -> Any:
    """transformers' configuration of the whole model."""
    from transformers import AutoConfig

    return AutoConfig.for_model(arch.model_type, **arch.config)


class HFEncoder(nn.Module):
    """The blocks of a transformers model on embeddings, with what it has before and after them.

    The forward pass is the model's own (`inputs_embeds`), bidirectional or causal as it was
    pretrained. Its modules are registered here under the names that freezing schedules know:
    `block.<i>`, `final_layer_norm` (a norm after the last block) and `stem` (positions, token
    types, embedding norm), each norm with `layer_norm` in its name. There is no token embedding.
    Parameters are NaN until a state dict is loaded or `draw` is called.

    Args:
        dropout: Probability, wherever the architecture has one.
        device: "meta" for names and shapes without memory.

    Attributes:
        hf_names: transformers' name of each tensor of the state dict (which has buffers, too).
        token_embedding: Its name there, its shape, and the factor that the model applies to it.
        max_tokens: Most tokens that it has positions for.

    Raises:
        WeightsError: if the model is no plain stack of blocks on token embeddings.
    """

    _model: Any

    def __init__(self, arch: HFArchitecture, *, dropout: float, device: str = "cpu") -> None:
        super().__init__()
        self.arch, self.d_model, self.num_blocks = arch, arch.d_model, arch.num_layers
        with _refusing(arch.model_type), torch.no_grad():
            model, path = _whole_model(arch, dropout, device)
            self.prefix, self.blocks_name = f"{model.base_model_prefix}.", f"{path}."
            tokens = model.get_input_embeddings()
            name = next(n for n, p in model.named_parameters() if p is tokens.weight)
            shape, factor = tuple(tokens.weight.shape), getattr(tokens, "embed_scale", 1.0)
            factor = getattr(tokens, "scalar_embed_scale", factor)  # where the other is a buffer
            self.token_embedding = name, shape, float(factor)
            if shape != (arch.vocab_size, arch.d_model) or len([*tokens.parameters()]) > 1:
                raise WeightsError(f"it projects its token embedding, {shape}, or has a norm in it")
            no_tokens = nn.Identity()
            no_tokens.weight = torch.empty(1, arch.d_model)  # some initialisers fill it
            model.set_input_embeddings(no_tokens)
            for head in {"pooler", "contact_head"} & model._modules.keys():
                setattr(model, head, None)
            self.block, self.stem = model.get_submodule(path), nn.ModuleDict()
            del self.block[arch.num_layers :]
            for module in model.modules():  # whole numbers, as MRA's positions, are no weights
                ints = {n for n, t in module.named_buffers(recurse=False) if t.dtype == torch.int64}
                module._non_persistent_buffers_set |= ints
            names = {id(t): name for name, t in model.state_dict(keep_vars=True).items()}
            parent = model
            for part in path.split("."):
                is_after = False  # modules are made in the order of their use, but for OPT's,
                for name, child in parent.named_children():
                    is_after |= name in (part, "final_layer_norm")
                    is_early = "rel_embeddings" in parent._modules  # DeBERTa's norm of these
                    if is_after and not is_early and _is_norm(child):
                        self.final_layer_norm = child
                    elif name != part and child is not no_tokens:
                        self.stem[name] = child
                parent = getattr(parent, part)
            for module in list(self.modules()):
                _name_norms(module)
            for parameter in self.parameters():
                parameter.fill_(torch.nan)  # uninitialised memory is often zeros
            object.__setattr__(self, "_model", model)  # no child: its parts are registered above
            self.hf_names = {n: names[id(t)] for n, t in self.state_dict(keep_vars=True).items()}
            if lost := set(names.values()) - set(self.hf_names.values()):
                raise WeightsError(f"{min(lost)} is outside its blocks")
        self.max_tokens: int | None = getattr(model.config, "max_position_embeddings", None)
        for table in (m for m in model.modules() if getattr(m, "padding_idx", None) is not None):
            if len(getattr(table, "weight", ())) == self.max_tokens:
                self.max_tokens -= table.padding_idx + 1

    def train(self, mode: bool = True) -> "HFEncoder":
        """Set the mode, also of what holds the parts together; some drop out there."""
        self._model.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HFEncoder":
        self._model._apply(fn)  # it may hold buffers of its own
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw all parameters from `generator` alone, by the law of the whole model's depth.

        Source: transformers' `_init_weights` of the model.
        """
        from transformers import AutoModel

        for module in self._model.modules():
            module._is_hf_initialized = False
        with torch.random.fork_rng([]):
            _seed(generator)
            self._model.initialize_weights()
            unset = {self.hf_names[n]: t for n, t in self.state_dict().items() if t.isnan().any()}
            if unset:  # drawn or set where they are made, as in OpenAI's GPT and Apertus
                _seed(generator)
                made = AutoModel.from_config(self._model.config).state_dict()
        for name, tensor in unset.items():
            tensor.copy_(made[name])

    def draw_tokens(self) -> float:
        """RMS of token embeddings by the architecture's law; every parameter is drawn anew."""
        tokens = torch.nn.utils.skip_init(nn.Embedding, 400_000 // self.d_model + 1, self.d_model)
        self._model.set_input_embeddings(tokens)
        self.draw(torch.Generator().manual_seed(0))  # of the law: the same at every seed
        rms = tokens.weight.detach().double().square().mean().sqrt().item()
        return self.token_embedding[2] * rms

    def convert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under the whole model's names and in float32, as transformers does it.

        It knows old names and other layouts (experts one by one, one matrix for queries, keys and
        values). What the file lacks is absent; what the model lacks is empty.
        """
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # what is missing or foreign is an error of t5ts
        with torch.random.fork_rng(devices=[]), _refusing(self.arch.model_type):
            model, found = type(self._model).from_pretrained(
                None,
                config=hf_config(self.arch),
                state_dict=dict(tensors),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        logging.set_verbosity(verbosity)
        absent = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
        held = {name: tensor for name, tensor in model.state_dict().items() if name not in absent}
        return held | {name: torch.empty(0) for name in found["unexpected_keys"]}

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Encode each row's tokens; (M, N, D) in and out, after the final norm if there is one."""
        own = tokens_MND.to(torch.float32, copy=True)  # CTRL scales it in place
        return self._model(inputs_embeds=own).last_hidden_state

    @torch.no_grad()
    def try_out(self) -> None:
        """Raise WeightsError if the model does not encode embeddings alone, or fails in autocast.

        The norm that runs last must be `final_layer_norm`, or a block's where there is none.
        """
        device, kind = next(self.parameters()).device, self.arch.model_type
        if torch.is_autocast_enabled(device.type):
            kind += f" in {torch.get_autocast_dtype(device.type)} (use train.precision=fp32)"
        with torch.random.fork_rng([]), _refusing(kind):  # BigBird makes modules in its first pass
            ran: list[nn.Module] = []
            norms = [module for module in self.modules() if _is_norm(module)]
            hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in norms]
            # Not zeros, which an unset table may hold: Gemma 4 looks tokens up by their embedding.
            self(torch.linspace(-1, 1, 2 * self.d_model, device=device).view(1, 2, -1))
            for hook in hooks:
                hook.remove()
            final = getattr(self, "final_layer_norm", None)
            if ran and ran[-1] is not final and (final or ran[-1] in {*self.stem.modules()}):
                raise WeightsError(f"its last norm is an unexpected one ({ran[-1]})")


@contextmanager
def _refusing(
    what: str, cannot: str = "encode patches with this transformers", advice: str = ADVICE
) -> Iterator[None]:
    """Turn any error into a WeightsError that names the architecture."""
    try:
        yield
    except Exception as error:
        why = error.__cause__ if isinstance(error, WeightsError) and error.__cause__ else error
        name = "" if isinstance(why, WeightsError) else f"{type(why).__name__}: "
        text = f"{name}{' '.join(str(why).split())[:200]}".rstrip(".")
        advice = "Set backbone.dropout=0." if "dropout" in text else advice
        raise WeightsError(f"{what} cannot {cannot}: {text}. {advice}") from error


def hf_init_law(arch: HFArchitecture) -> dict[str, float]:
    """Standard deviation of each matrix of the blocks and the stem, measured on fresh draws.

    A matrix is drawn in the same way in every block, so the first that has it is enough. A stack
    of matrices (a mixture's experts) is one tall matrix.
    """
    names = list(HFEncoder(arch, dropout=0.0, device="meta").hf_names)
    kinds = {name: re.sub(r"^block\.\d+\.", "block.", name) for name in names}
    first = {kind: name for name, kind in reversed(kinds.items())}  # its name where it comes first
    last = max(int(n.split(".")[1]) for n in first.values() if n.startswith("block."))
    few = HFEncoder(replace(arch, num_layers=last + 1), dropout=0.0)
    matrices = {
        kinds[name]: p
        for name, p in few.named_parameters()
        if name == first[kinds[name]] and p.ndim > 1 and min(p.flatten(0, -2).shape) >= 16
    }
    draws = -(-40_000 // min((p.numel() for p in matrices.values()), default=40_000))
    generator, variance = torch.Generator().manual_seed(0), dict.fromkeys(matrices, 0.0)
    for _ in range(draws):
        few.draw(generator)
        for kind, p in matrices.items():
            variance[kind] += p.detach().var(correction=0).item() / draws
    # Without those that begin as zeros.
    return {name: variance[kind] ** 0.5 for name, kind in kinds.items() if variance.get(kind)}


def is_norm_weight(name: str) -> bool:
    """Whether a parameter is the weight of a norm, by its name here."""
    return re.search(r"layer_norm\w*\.weight$", name) is not None


def export_config(arch: HFArchitecture) -> dict[str, Any]:
    """The `config.json` of the blocks in use, with a vocabulary of two words.

    Two, since the padding word may be 1, from which some models count positions.
    """
    config = hf_config(arch)
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and value not in (None, 0, 1):
            setattr(config, name, None if name == "pad_token_id" else 0)
        elif isinstance(value, list) and len(value) == config.num_hidden_layers:  # as layer_types
            setattr(config, name, value[: arch.num_layers])
    config.num_hidden_layers, config.vocab_size, config.use_cache = arch.num_layers, 2, False
    if getattr(config, "attention_layers", None):  # GPT-Neo's
        config.attention_types = [[config.attention_layers, 1]]
    return {"model_type": arch.model_type, **config.to_diff_dict(), "dtype": "float32"}


@torch.no_grad()
def check_export(
    arch: HFArchitecture, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Raise WeightsError if transformers' model of this `export_config` computes something else.

    Blocks may know the depth of their model, as MiniCPM's do.
    """
    what, advice = f"{arch.model_type}'s first {arch.num_layers} blocks alone", "All blocks can"
    with _refusing(what, "be exported", f"{advice} (backbone.num_layers=null)."):
        ends = hf_architecture(config, num_layers=None, where="config.json")
        tokens_MND = torch.randn(1, 4, arch.d_model, generator=torch.Generator().manual_seed(0))
        outputs = []
        for one in (arch, ends):
            encoder = HFEncoder(one, dropout=0.0)
            encoder.load_state_dict(state)
            outputs.append(encoder(tokens_MND))
        if not torch.allclose(outputs[0], outputs[1], atol=1e-5, equal_nan=True):
            raise WeightsError("transformers computes something else")


def _whole_model(arch: HFArchitecture, dropout: float, device: str) -> tuple[Any, str]:
    """The model in evaluation mode, its parameters unset, and the name of its list of blocks."""
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    config = hf_config(arch)
    config.use_cache, config.return_dict = False, True
    if dropout > 0.0 and arch.model_type == "mpt":  # attn_pdrop is a whole number there
        raise WeightsError("it has no dropout")
    for key, value in config.to_dict().items():
        is_dropout = "dropout" in key or key.endswith(("pdrop", "layerdrop"))
        if is_dropout and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, 0.0 if key.endswith("layerdrop") else dropout)
    with torch.device(device), no_init_weights(), torch.random.fork_rng([]):
        model = AutoModel.from_config(config, dtype=torch.float32).eval()
    depth = config.num_hidden_layers
    lists = (item for item in model.named_modules() if isinstance(item[1], nn.ModuleList))
    sizes = {name: len(module) for name, module in lists if [*module.parameters()]}
    path = next((name for name, size in sizes.items() if size == depth), "")
    if not path or not all(f"{name}.".startswith(f"{path}.") for name in sizes):
        raise WeightsError(
            INSTEAD.get(arch.model_type, f"it has other lists than one of {depth} blocks")
        )
    return model, path


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(False))


def _name_norms(module: nn.Module) -> None:
    """Register norms under names with `layer_norm`; the module's code still finds them."""
    renamed: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        ours = re.sub("layernorm", "layer_norm", name, flags=re.IGNORECASE)
        ours = ours if "layer_norm" in ours else f"{ours}_layer_norm"
        if child is None or not _is_norm(child) or ours == name:
            renamed[name] = child
        else:
            renamed[ours] = vars(module)[name] = child
    module._modules = renamed


def _seed(generator: torch.Generator) -> None:
    """Seed torch's global generator, which transformers draws from, from another one."""
    torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
