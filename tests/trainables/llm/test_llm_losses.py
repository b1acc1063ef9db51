import pytest

pytest.importorskip("transformers")

import torch
from model_heads import BIASED, CHANGED, model_of
from tiny_models import VOCABULARY, tokens
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.llm import loss_chunks, loss_head
from trainables.llm.loss_head import Answers
from trainables.llm.losses import Teacher, TextLoss
from trainables.llm.training import mean_loss_nats

TOKEN_BT = tokens((3, 12))  # 33 predictions
CHUNK = 8
FAMILIES = ["llama", "mistral", "gpt2", "gemma3", *BIASED, *CHANGED]  # untied, tied, of LayerNorm, of norms with an offset


@pytest.fixture
def in_chunks(monkeypatch):
    monkeypatch.setattr(loss_head, "FEW_LOGITS", 0)
    monkeypatch.setattr(loss_chunks, "_TOKENS_AT_ONCE", CHUNK)


def whole(model, token_BT, teacher=None):
    """The loss and the text's part of it, by torch's own functions of all logits at once."""
    logits_NV = model(token_BT[:, :-1], use_cache=False).logits.flatten(0, 1)
    text = functional.cross_entropy(logits_NV, token_BT[:, 1:].flatten())
    if teacher is None:
        return text, text
    with torch.no_grad():
        answers_NV = teacher.model(token_BT[:, :-1], use_cache=False).logits.flatten(0, 1)
    log_q, log_p = ((each / teacher.temperature).log_softmax(-1) for each in (logits_NV, answers_NV))
    soft = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return teacher.alpha * text + (1 - teacher.alpha) * teacher.temperature**2 * soft, text


def gradients(model, loss):
    names = dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, names.values()), strict=True))


def assert_same(model, found, expected):
    (loss, text), (other_loss, other_text) = found, expected
    torch.testing.assert_close((loss, text), (other_loss, other_text), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(model, 3 * loss), gradients(model, 3 * other_loss), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_in_chunks_has_the_value_and_the_gradients_of_the_whole(family, in_chunks):
    model = model_of(family)
    loss = TextLoss(model, None, num_tokens=TOKEN_BT.numel())
    assert_same(model, loss(TOKEN_BT), whole(model, TOKEN_BT))


@pytest.mark.parametrize(("family", "other"), [("mistral", "gpt2"), ("llama", "capped"), ("capped", "a head with a bias")])
def test_a_teachers_answers_in_chunks_teach_what_whole_ones_do(family, other, in_chunks):
    model, teacher = model_of(family), Teacher(model=model_of(other), alpha=0.3, temperature=2.0)
    loss = TextLoss(model, teacher, num_tokens=TOKEN_BT.numel())
    assert_same(model, loss(TOKEN_BT), whole(model, TOKEN_BT, teacher))
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert {id(parameter) for parameter in loss.parameters()} == {id(parameter) for parameter in model.parameters()}


def test_a_small_batch_has_the_same_loss_and_gradients_without_its_head():
    model, teacher = model_of("mistral"), Teacher(model=model_of("gpt2"), alpha=0.3, temperature=2.0)
    assert_same(model, TextLoss(model, teacher, num_tokens=36)(TOKEN_BT), whole(model, TOKEN_BT, teacher))


class Widest(TorchDispatchMode):
    """Sees the most rows of any tensor of logits."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, tensor.numel() // VOCABULARY)
        return result


@pytest.mark.parametrize("teacher", [None, "gpt2"])
def test_no_tensor_of_all_logits_is_ever_made(teacher, in_chunks):
    token_BT = tokens((8, 31))
    teacher = teacher and Teacher(model=model_of(teacher), alpha=0.5, temperature=2.0)
    model = model_of("mistral")
    loss = TextLoss(model, teacher, num_tokens=token_BT.numel())
    with Widest() as chunked:
        loss(token_BT)[0].backward()
    with Widest() as measured:
        mean_loss_nats(model, token_BT, batch_size=8)
    with Widest() as plain:
        whole(model, token_BT, teacher)[0].backward()
    # the matrices of the vocabulary, turned, have as many rows as the model is wide
    assert (chunked.rows, measured.rows, plain.rows) == (32, 32, 240)


def test_a_mean_loss_in_chunks_is_that_of_the_whole(in_chunks):
    model, token_BT = model_of("a head with a bias"), tokens((5, 9))
    assert mean_loss_nats(model, token_BT, batch_size=2) == pytest.approx(whole(model, token_BT)[1].item(), abs=1e-5)


def test_a_head_that_multiplies_in_half_precision_sums_its_gradients_in_full(monkeypatch):
    """As on a GPU: products of bfloat16, parameters of float32."""
    monkeypatch.setattr(loss_chunks, "_TOKENS_AT_ONCE", CHUNK)
    generator = torch.Generator().manual_seed(0)
    hidden_ND, weight_VD, bias_V = (torch.randn(shape, generator=generator) for shape in ((500, 16), (50, 16), (50,)))
    target_N = torch.randint(50, (500,), generator=generator)
    found, expected = [], []
    for dtype, results in ((torch.bfloat16, found), (torch.float32, expected)):
        held = [tensor.clone().requires_grad_() for tensor in (hidden_ND, weight_VD, bias_V)]
        answers = Answers(read=held[0], weight_VD=weight_VD.to(dtype), bias_V=bias_V.to(dtype))
        lesson = loss_chunks.Lesson(target_N=target_N, answers=None, alpha=1.0, temperature=1.0)
        loss, _ = loss_chunks._MeanLoss.apply(*held, answers, lesson)
        results += [loss.detach(), *torch.autograd.grad(loss, held)]
    assert all(tensor.dtype == torch.float32 for tensor in found)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.01
        assert float((one - other).norm()) > 0
