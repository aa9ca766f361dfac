"""Any pretrained Transformer that transformers builds, as an encoder of patches."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    r"|model_type|vocab_size|tie_.*|is_decoder|.*_token_ids?|.*drop.*|id2label|label2id"
    r"|task_specific_params|summary_.*|problem_type|output_.*|return_dict|chunk_size.*"
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
        raise WeightsError(f"{where}: {kind} has a decoder too; of those only T5 can be used.")
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
        hf_names: transformers' name of each parameter.
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
            raise WeightsError(
                f"{arch.model_type}: its token embedding is {shape}, its width {arch.d_model}:"
                " models that project their embeddings cannot be used."
            )
        model.set_input_embeddings(_NoTokens(arch.d_model))
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        blocks = model.get_submodule(path)
        del blocks[arch.num_layers :]
        if device != "meta":
            _materialise(model, device)
        names = {id(p): name for name, p in model.named_parameters()}
        self.block = blocks
        self.stem = nn.ModuleDict()
        parent = model
        for part in path.split("."):
            is_last = parent is model.get_submodule(path.rpartition(".")[0])
            for name, child in parent.named_children():
                if name == part or isinstance(child, _NoTokens):
                    continue
                if is_last and _is_norm(child) and "embed" not in name:
                    self.final_layer_norm = child
                else:
                    self.stem[name] = child
            parent = getattr(parent, part)
        for module in list(self.modules()):
            _name_norms(module)
            module._non_persistent_buffers_set |= set(module._buffers)  # config's, not weights
        object.__setattr__(self, "_model", model)  # not a child: its parts are registered above
        self.hf_names = {name: names[id(p)] for name, p in self.named_parameters()}
        if len(self.hf_names) < len(names):
            lost = min(set(names.values()) - set(self.hf_names.values()))
            raise WeightsError(f"{arch.model_type} cannot be used: {lost} is outside its blocks.")
        self.max_tokens = _max_tokens(model)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw all parameters from `generator` alone, by the law of the whole model's depth.

        Source: transformers' `_init_weights` of the model.
        """
        for module in self._model.modules():
            module._is_hf_initialized = False
        with _seeded(generator):
            self._model.initialize_weights()
        if unset := [n for n, p in self.named_parameters() if p.isnan().any()]:
            raise WeightsError(f"transformers' initialisation leaves {unset[0]} out.")

    def forward(self, tokens_MND: Tensor) -> Tensor:
        """Encode each row's tokens; (M, N, D) in and out, after the final norm if there is one."""
        if tokens_MND.dtype in (torch.float16, torch.bfloat16):
            tokens_MND = tokens_MND.float()
        return self._model(inputs_embeds=tokens_MND).last_hidden_state

    @torch.no_grad()
    def try_out(self) -> None:
        """Raise WeightsError if the model does not encode embeddings alone or fails in autocast."""
        device, kind = next(self.parameters()).device, self._model.config.model_type
        way_out = "another checkpoint or a newer transformers"
        if torch.is_autocast_enabled(device.type):
            kind += f" under autocast to {torch.get_autocast_dtype(device.type)}"
            way_out = "train.precision=fp32"
        with _refusing(kind, way_out):
            self(torch.zeros(1, 2, self.d_model, device=device))


@contextmanager
def _refusing(
    kind: str, way_out: str = "another checkpoint or a newer transformers"
) -> Iterator[None]:
    """Turn any error of transformers' own code into a WeightsError for the architecture."""
    try:
        yield
    except Exception as error:
        why = (str(error).strip().splitlines() or [""])[0][:200]
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
    state = {name: p.detach() for name, p in encoder.named_parameters()}
    one = HFEncoder(replace(arch, num_layers=1), dropout=0.0)
    rows = _LAW_DRAWS // arch.d_model + 1
    embedding = torch.nn.utils.skip_init(nn.Embedding, rows, arch.d_model)
    one._model.set_input_embeddings(embedding)
    one.draw(torch.Generator().manual_seed(0))  # a property of the law: the same at every seed
    rms = embedding.weight.detach().double().square().mean().sqrt().item()
    return state, rms * encoder.token_embedding[2]


def hf_init_law(arch: HFArchitecture) -> dict[str, float]:
    """Standard deviation of each matrix of the blocks and the stem, measured on fresh draws.

    A matrix is drawn in the same way in every block, so one block is enough.
    """
    one = HFEncoder(replace(arch, num_layers=1), dropout=0.0)
    matrices = {n: p for n, p in one.named_parameters() if p.ndim == 2 and min(p.shape) >= 16}
    generator = torch.Generator().manual_seed(0)
    squares, draws = dict.fromkeys(matrices, 0.0), 0
    while not draws or draws * min(p.numel() for p in matrices.values()) < _LAW_DRAWS // 10:
        one.draw(generator)
        draws += 1
        for name, p in matrices.items():
            squares[name] += p.detach().var(correction=0).item()
    law = {name: (total / draws) ** 0.5 for name, total in squares.items()}
    return {
        name: law[kind]
        for name in HFEncoder(arch, dropout=0.0, device="meta").hf_names
        if (kind := re.sub(r"^block\.\d+\.", "block.0.", name)) in law
    }


def is_norm_weight(name: str) -> bool:
    """Whether a parameter is the weight of a norm, by its name here."""
    return re.search(r"layer_norm\w*\.weight$", name) is not None


def export_config(arch: HFArchitecture) -> dict[str, Any]:
    """The `config.json` of the blocks in use, with the smallest vocabulary."""
    config = hf_config(arch)
    config.num_hidden_layers = arch.num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: arch.num_layers]
    if getattr(config, "attention_layers", None):  # GPT-Neo's
        config.attention_layers = config.attention_layers[: arch.num_layers]
        config.attention_types = [[config.attention_layers, 1]]
    for name in list(vars(config)):
        if name.endswith("_token_id") and name != "pad_token_id":
            setattr(config, name, 0)  # None is not allowed by all
    if config.pad_token_id is not None and config.pad_token_id > 1:
        config.pad_token_id = None  # a row of the embedding; positions count from 0 or 1
    last_row = 1 if arch.model_type == "mpnet" else 0  # MPNet pads with 1, whatever its config says
    config.vocab_size = max(last_row, config.pad_token_id or 0) + 1
    return {"model_type": arch.model_type, **config.to_diff_dict(), "dtype": "float32"}


def _skeleton(arch: HFArchitecture, dropout: float) -> tuple[Any, str]:
    """The whole model without memory, in evaluation mode, and the name of its list of blocks."""
    from transformers import AutoModel

    config = hf_config(arch)
    config.use_cache = False
    for key, value in config.to_dict().items():
        is_dropout = "dropout" in key or key.endswith("pdrop")
        if is_dropout and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, dropout)
    with torch.device("meta"), _refusing(arch.model_type):
        model = AutoModel.from_config(config, dtype=torch.float32)
    lists = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    path = max(lists, key=lambda name: lists[name], default="")
    if not path or len(model.get_submodule(path)) != config.num_hidden_layers:
        raise WeightsError(f"{arch.model_type} cannot be used: it is not a plain stack of blocks.")
    return model.eval(), path


def _materialise(model: Any, device: str) -> None:
    """Give a model memory: buffers get their values, parameters NaN."""
    model.to_empty(device=device)
    for module in model.modules():
        mark_unset(module)
    for parameter in model.parameters():  # transformers' mark for "leave it alone"
        parameter._is_hf_initialized = True
    with _seeded(torch.Generator().manual_seed(0)):
        model.initialize_weights()
    for parameter in model.parameters():
        del parameter._is_hf_initialized


class _NoTokens(nn.Identity):
    """Replaces the token embedding; some initialisers fill its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.empty(1, width)


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
