"""Any pretrained Transformer that transformers builds, as an encoder of patches."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from t5ts.errors import WeightsError
from t5ts.model.architecture import HFArchitecture
from t5ts.model.layers import mark_unset

#: Draws of the token embedding and of each kind of matrix from which an init law is measured.
_LAW_DRAWS = 400_000
#: Configuration keys that do not affect what an encoder of patches computes.
BOOKKEEPING = re.compile(
    r"architectures|auto_map|dtype|torch_dtype|transformers_version|_name_or_path|use_cache"
    r"|model_type|vocab_size|tie_.*|.*_token_ids?|.*drop.*|id2label|label2id"
    r"|task_specific_params|summary_.*|problem_type|output_.*|return_dict|chunk_size.*"
    r"|classifier_.*|decoder_bias|sparse_pred.*"  # of heads
)


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
    if kind in ("t5", "mt5"):
        raise WeightsError(f"{where} is a T5's: use backbone=local backbone.path=DIR.")
    without = ("model_type", "auto_map", "transformers_version", "_name_or_path", "torch_dtype")
    with _refusing(f"{where}: {kind}"):  # each model type has checks of its own
        config = AutoConfig.for_model(kind, **{k: v for k, v in values.items() if k not in without})
        d_model, num_heads = config.hidden_size, config.num_attention_heads
        vocab_size, depth = config.vocab_size, int(config.num_hidden_layers)
        stored = config.to_diff_dict()
    if config.is_encoder_decoder:
        raise WeightsError(
            f"{where}: {kind} has an encoder and a decoder; of those only T5 can be used. Choose an"
            " encoder such as BERT or a decoder-only model such as GPT-2."
        )
    if not (1 <= depth <= 1000 and 1 <= d_model <= 100_000 and 1 <= vocab_size <= 10_000_000):
        raise WeightsError(
            f"{where}: {depth} blocks of width {d_model} and {vocab_size} words are no language"
            " model; allowed: 1 to 1,000, 100,000 and 10,000,000. Download config.json again."
        )
    if num_layers is not None and num_layers > depth:
        raise WeightsError(
            f"backbone.num_layers={num_layers}, but {where} describes {depth} blocks: at most"
            f" {depth}, or null for all."
        )
    return HFArchitecture(
        model_type=kind,
        d_model=d_model,
        num_layers=num_layers or depth,
        num_heads=num_heads,
        vocab_size=vocab_size,
        config={k: v for k, v in stored.items() if k not in without and k != "dtype"},
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
        arch: Shape.
        dropout: Probability, wherever the architecture has one.
        device: "meta" for names and shapes without memory.

    Attributes:
        hf_names: transformers' name of each tensor of the state dict (buffers such as DeepSeek's
            `e_score_correction_bias` are among them).
        token_embedding: transformers' name of the token embedding, its shape, and the factor that
            the model applies to it.
        max_tokens: Most tokens that it has positions for.
    """

    _model: Any

    def __init__(self, arch: HFArchitecture, *, dropout: float, device: str = "cpu") -> None:
        super().__init__()
        model, path = _skeleton(arch, dropout)
        self.d_model = arch.d_model
        self.num_blocks = arch.num_layers
        self.prefix = f"{model.base_model_prefix}."
        self.blocks_name = f"{path}."
        with _refusing(arch.model_type):
            embedding = model.get_input_embeddings()
            name = next(n for n, p in model.named_parameters() if p is embedding.weight)
            shape = tuple(embedding.weight.shape)
        factor = getattr(embedding, "embed_scale", 1.0)  # Gemma's is a buffer
        factor = getattr(embedding, "scalar_embed_scale", factor)
        self.token_embedding = name, shape, float(factor)
        if shape != (arch.vocab_size, arch.d_model):
            why = f"it projects its token embedding, {shape}, to its width of {arch.d_model}"
            raise _unusable(arch, why)
        no_tokens = nn.Identity()
        no_tokens.weight = torch.empty(1, arch.d_model)  # some initialisers fill it
        model.set_input_embeddings(no_tokens)
        for head in ("pooler", "contact_head"):
            if getattr(model, head, None) is not None:
                setattr(model, head, None)
        blocks = model.get_submodule(path)
        del blocks[arch.num_layers :]
        _materialise(model, dict.fromkeys(blocks.modules(), device))
        before = _run_before(blocks[0], model, arch)
        names = {id(t): name for name, t in model.state_dict(keep_vars=True).items()}
        self.block = blocks
        self.stem = nn.ModuleDict()
        parent = model
        for part in path.split("."):
            for name, child in parent.named_children():
                if _is_norm(child) and child not in before:
                    self.final_layer_norm = child
                elif name != part and child is not no_tokens:
                    self.stem[name] = child
            parent = getattr(parent, part)
        for module in list(self.modules()):
            _name_norms(module)
        object.__setattr__(self, "_model", model)  # not a child: its parts are registered above
        self.hf_names = {n: names[id(t)] for n, t in self.state_dict(keep_vars=True).items()}
        if len(self.hf_names) < len(names):
            lost = min(set(names.values()) - set(self.hf_names.values()))
            raise _unusable(arch, f"{lost} is outside its blocks")
        self.max_tokens = _max_tokens(model)

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
        for module in self._model.modules():
            module._is_hf_initialized = False
        own = self.state_dict()
        wanted = {theirs: own[ours] for ours, theirs in self.hf_names.items()}
        _initialise(self._model, wanted, generator)

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Encode each row's tokens; (M, N, D) in and out, after the final norm if there is one."""
        if tokens_MND.dtype in (torch.float16, torch.bfloat16):
            tokens_MND = tokens_MND.float()
        return self._model(inputs_embeds=tokens_MND).last_hidden_state

    @torch.no_grad()
    def try_out(self) -> None:
        """Raise WeightsError if the model does not encode embeddings alone or fails in autocast."""
        device, about = next(self.parameters()).device, [self._model.config.model_type]
        if torch.is_autocast_enabled(device.type):
            about[0] += f" under autocast to {torch.get_autocast_dtype(device.type)}"
            about.append("train.precision=fp32")
        with _refusing(*about):
            self(torch.zeros(1, 2, self.d_model, device=device))


def _unusable(arch: HFArchitecture, why: str) -> WeightsError:
    return WeightsError(f"{arch.model_type} cannot be used: {why}. Choose another checkpoint.")


@contextmanager
def _refusing(
    kind: str, way_out: str = "another checkpoint or a newer transformers"
) -> Iterator[None]:
    """Turn any error of transformers' own code into a WeightsError for the architecture."""
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{kind} cannot encode patches with this transformers ({type(error).__name__}: {why})."
            f" Use {way_out}; code that comes with a checkpoint is never run."
        ) from error


def hf_random_state(
    arch: HFArchitecture, *, generator: torch.Generator
) -> tuple[dict[str, Tensor], float]:
    """Tensors freshly drawn from `generator` under the architecture's law, and its tokens' RMS."""
    encoder = HFEncoder(arch, dropout=0.0)
    encoder.draw(generator)
    state = encoder.state_dict()
    one = HFEncoder(replace(arch, num_layers=1), dropout=0.0)
    rows = _LAW_DRAWS // arch.d_model + 1
    embedding = torch.nn.utils.skip_init(nn.Embedding, rows, arch.d_model)
    one._model.set_input_embeddings(embedding)
    one.draw(torch.Generator().manual_seed(0))  # a property of the law: the same at every seed
    rms = embedding.weight.detach().double().square().mean().sqrt().item()
    return state, rms * encoder.token_embedding[2]


def hf_init_law(arch: HFArchitecture) -> dict[str, float]:
    """Standard deviation of each matrix of the blocks and the stem, measured on fresh draws.

    A matrix is drawn in the same way in every block, so the first that has it is enough. A stack
    of matrices (a mixture's experts) is one tall matrix.
    """
    names = {
        name: re.sub(r"^block\.\d+\.", "block.", name)
        for name in HFEncoder(arch, dropout=0.0, device="meta").hf_names
    }
    kinds = {kind: name for name, kind in reversed(names.items())}  # its name where it comes first
    last = max(int(n.split(".")[1]) for n in kinds.values() if n.startswith("block."))
    few = HFEncoder(replace(arch, num_layers=last + 1), dropout=0.0)
    tensors = {n: p for n, p in few.named_parameters() if n in kinds.values() and p.ndim > 1}
    matrices = {n: p for n, p in tensors.items() if min(p.flatten(0, -2).shape) >= 16}
    smallest = min((p.numel() for p in matrices.values()), default=_LAW_DRAWS)
    draws = -(-_LAW_DRAWS // 10 // smallest)
    generator = torch.Generator().manual_seed(0)
    squares = dict.fromkeys(matrices, 0.0)
    for _ in range(draws):
        few.draw(generator)
        for name, p in matrices.items():
            squares[name] += p.detach().var(correction=0).item()
    return {
        name: (squares[first] / draws) ** 0.5
        for name, kind in names.items()
        if (first := kinds[kind]) in squares
    }


def is_norm_weight(name: str) -> bool:
    """Whether a parameter is the weight of a norm, by its name here."""
    return re.search(r"layer_norm\w*\.weight$", name) is not None


def export_config(arch: HFArchitecture) -> dict[str, Any]:
    """The `config.json` of the blocks in use, with the smallest vocabulary."""
    config = hf_config(arch)
    for name, values in list(vars(config).items()):  # such as layer_types
        if isinstance(values, list) and len(values) == config.num_hidden_layers:
            setattr(config, name, values[: arch.num_layers])
    config.num_hidden_layers = arch.num_layers
    if getattr(config, "attention_layers", None):  # GPT-Neo's
        config.attention_types = [[config.attention_layers, 1]]
    for name in list(vars(config)):
        if name.endswith("_token_id") and name != "pad_token_id":
            setattr(config, name, 0)  # None is not allowed by all
    pad = getattr(config, "pad_token_id", None) or 0
    if pad > 1:
        config.pad_token_id, pad = None, 0  # a row of the embedding; positions count from 0 or 1
    last_row = 1 if arch.model_type == "mpnet" else 0  # MPNet pads with 1, whatever its config says
    config.vocab_size = max(last_row, pad) + 1
    return {"model_type": arch.model_type, **config.to_diff_dict(), "dtype": "float32"}


def _skeleton(arch: HFArchitecture, dropout: float) -> tuple[Any, str]:
    """The whole model without memory, in evaluation mode, and the name of its list of blocks."""
    from transformers import AutoModel

    config = hf_config(arch)
    config.use_cache, config.return_dict = False, True
    with torch.device("meta"), _refusing(arch.model_type):
        for key, value in config.to_dict().items():
            is_dropout = "dropout" in key or key.endswith(("pdrop", "layerdrop"))
            if is_dropout and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, key, 0.0 if key.endswith("layerdrop") else dropout)
        model = AutoModel.from_config(config, dtype=torch.float32)
    lists = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    path = max(lists, key=lambda name: lists[name], default="")
    sizes = [len(model.get_submodule(name)) for name in lists if not name.startswith(f"{path}.")]
    if sizes.count(config.num_hidden_layers) != 1 or not path:
        why = f"it is not a plain stack of {config.num_hidden_layers} blocks (does it share them?)"
        raise _unusable(arch, why)
    return model.eval(), path


def hf_tensors(
    arch: HFArchitecture, tensors: Mapping[str, Tensor], *, where: str
) -> dict[str, Tensor]:
    """A file's tensors under the names that the whole model has, in float32.

    transformers converts old names, and models whose files have another layout (experts one by
    one, one matrix for queries, keys and values). What the file lacks is absent; what the model
    lacks is empty.
    """
    from transformers.utils import logging

    config, verbosity = hf_config(arch), logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing or foreign is an error of t5ts
    with _seeded(torch.Generator()), _refusing(f"{where}: {arch.model_type}"):
        model, found = type(_skeleton(arch, 0.0)[0]).from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    logging.set_verbosity(verbosity)
    absent = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    held = {name: tensor for name, tensor in model.state_dict().items() if name not in absent}
    return held | {name: torch.empty(0) for name in found["unexpected_keys"]}


def _run_before(block: nn.Module, model: Any, arch: HFArchitecture) -> set[nn.Module]:
    """The modules that run before a block, found by a forward pass up to there."""
    ran: set[nn.Module] = set()

    def stop(*_: Any) -> None:
        raise _ReachedError

    seeded = _seeded(torch.Generator().manual_seed(0))  # BigBird makes modules in its forward
    with ExitStack() as stack, seeded, _refusing(arch.model_type), suppress(_ReachedError):
        for module in model.modules():
            hook = module.register_forward_hook(lambda module, *_: ran.add(module))
            stack.callback(hook.remove)
        stack.callback(block.register_forward_pre_hook(stop).remove)
        model(inputs_embeds=torch.zeros(1, 2, arch.d_model))
    return ran


class _ReachedError(Exception):
    """The forward pass has come to the block of interest."""


@torch.no_grad()
def _materialise(model: Any, devices: Mapping[nn.Module, str]) -> None:
    """Give a model memory, on the CPU unless `devices` differs: parameters NaN, buffers' values."""
    for module in model.modules():
        module.to_empty(device=devices.get(module, "cpu"), recurse=False)
        mark_unset(module)
    for parameter in model.parameters():  # transformers' mark for "leave it alone"
        parameter._is_hf_initialized = True
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    for buffer in buffers.values():
        buffer.fill_(math.nan)
    _initialise(model, buffers, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        del parameter._is_hf_initialized


def _initialise(model: Any, wanted: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Run `_init_weights`; what it leaves NaN of `wanted` gets the value that it is made with."""
    from transformers import AutoModel

    with _seeded(generator):
        model.initialize_weights()
    unset = {n: t for n, t in wanted.items() if not t.is_meta and t.isnan().any()}
    if unset:
        with _seeded(generator):
            made = AutoModel.from_config(model.config, dtype=torch.float32)
        values = dict(made.named_parameters()) | dict(made.named_buffers())
        for name, tensor in unset.items():
            tensor.copy_(values[name])


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(False))


def _name_norms(module: nn.Module) -> None:
    """Register norms under names with `layer_norm`; the module's code still finds them."""
    renamed: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        ours = re.sub("layernorm", "layer_norm", name, flags=re.IGNORECASE)
        if child is not None and _is_norm(child) and ours != "final_layer_norm":
            ours = ours if "layer_norm" in ours else f"{ours}_layer_norm"
            if ours != name:
                module.__dict__[name] = child
            renamed[ours] = child
        else:
            renamed[name] = child
    module._modules = renamed


def _max_tokens(model: Any) -> int | None:
    """Number of positions that the model has; a table's padding row does not count."""
    most = getattr(model.config, "max_position_embeddings", None)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == most:
            return most - (0 if module.padding_idx is None else module.padding_idx + 1)
    return most


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global generator from another one, and restore it after the block."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
