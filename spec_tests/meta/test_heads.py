# SPDX-License-Identifier: Apache-2.0
"""How the reference finds out whether embeddings have another size than the base model's."""

from __future__ import annotations

import http.server
import threading

import pytest
import transformers
from huggingface_hub import constants

from addons.heads import heads
from addons.modules import model_parts
from spec_tests.builders import hf
from spec_tests.strategies.trees import Leaf, TreeSpec


@pytest.fixture
def asked(monkeypatch):
    """What a hub is asked for: one on this machine, which has nothing."""
    seen = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(404)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *said):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        threading.Thread(target=server.serve_forever).start()
        yield seen
        server.shutdown()


def test_hub_is_not_asked_for_the_base_model(asked):
    assert heads(model_parts([hf.llama()]), []).tensors == {}
    assert [path for path in asked if "tiny/llama" in path] == []  # the client asks for what is its own


def test_plain_model_has_no_embeddings_that_travel(tmp_path):
    hf.llama().save_pretrained(tmp_path)
    model = TreeSpec((Leaf("model.embed_tokens"), Leaf("lm_head"))).build()
    model.config = hf.llama(vocab_size=hf.VOCAB + 4).config
    model.config.name_or_path = str(tmp_path)
    assert heads(model_parts([model]), []).tensors == {}


def test_base_model_without_words_has_no_embeddings_that_travel(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.ViTModel(transformers.ViTConfig(image_size=4, patch_size=2, **sizes)).save_pretrained(tmp_path)
    assert heads(model_parts([transformers.ViTModel.from_pretrained(tmp_path)]), []).tensors == {}
