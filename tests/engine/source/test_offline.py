"""timm names without a network."""

import os
import socket
import time

import pytest
from huggingface_hub import constants

from recast_cli.engine.errors import RecastError
from recast_cli.engine.source.open import open_source


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("vit_small_patch16_224", "weights=FILE"),
        ("resnet34.a1_in1k", "weights=FILE"),
        ("hf-hub:timm/resnet18.a1_in1k", "architecture=NAME"),
    ],
)
def test_it_fails_soon_and_says_what_to_do(name, option):
    start, before = time.monotonic(), constants.HF_HUB_OFFLINE
    with pytest.raises(RecastError, match=option) as caught:
        open_source(name)
    assert time.monotonic() - start < 15
    assert name in caught.value.what
    assert "\n" not in str(caught.value)
    assert before == constants.HF_HUB_OFFLINE


def test_names_that_timm_does_not_know_need_no_network():
    with pytest.raises(RecastError, match="Did you mean 'resnet34'"):
        open_source("resnet_34")
    with pytest.raises(RecastError, match=r"resnet34\.a1_in1k"):
        open_source("resnet34.a1_in2k")
