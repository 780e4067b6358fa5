"""The client of docs/serve.md, against a stand-in for the server: it reads the request and lets transformers answer."""

import base64
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from worlds import ROOT

import liteframe
from liteframe import StreamSession, memories
from liteframe.answer.positions import Original

QUESTION = "Which way does the red object move?"


@pytest.fixture
def client(loaded, monkeypatch):
    """What the page's code defines, by family."""
    code = re.search(r"## A stream with a server.*?```python\n(.*?)```", (ROOT / "docs/serve.md").read_text(), re.S)[1]

    def run(family):
        monkeypatch.setattr(liteframe, "load_video_llm", lambda folder: loaded[f"liteframe_{family}"])
        names = {}
        exec(code.replace('"halving"](4096)', '"halving"](128)'), names)
        return names["session"], names["ask_server"]

    return run


@pytest.mark.parametrize("family", ["internvl", "llava_onevision"])
def test_a_stand_in_answers_as_the_session_does(client, loaded, video, family):
    session, ask_server = client(family)
    model, processor = loaded[f"liteframe_{family}"]
    sizes = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            embeddings = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)  # [L,D]
            sizes.append(list(embeddings.shape))
            ends = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
            ids = model.generate(
                inputs_embeds=embeddings[None], attention_mask=torch.ones(1, len(embeddings)), do_sample=False,
                max_new_tokens=body["max_tokens"], eos_token_id=ends,
            )  # fmt: skip
            text = processor.tokenizer.decode(ids[0], skip_special_tokens=True)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"text": text}]}).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/completions"
    for part in (video[:11], video[11:]):
        session.add(part)
        assert ask_server(QUESTION, url) == session.ask(QUESTION, max_new_tokens=64).text
    server.shutdown()
    assert session.size().tokens <= 128
    assert sizes[0][1] == model.config.text_config.hidden_size


def test_what_no_prompt_holds_is_not_sent(loaded, video):
    for kind, memory, words in (
        ("internvl", memories["sink_window"](64), "entries of a KV cache, and no prompt holds them"),
        ("qwen3_vl", memories["window"](64), "positions are not counted one by one"),
    ):
        session = StreamSession(*loaded[f"liteframe_{kind}"], memory)
        session.add(video)
        with pytest.raises(ValueError, match=words):
            session.prompt(QUESTION)
    with pytest.raises(ValueError, match="positions are not counted one by one"):
        StreamSession(*loaded["internvl"], positions=Original()).prompt(QUESTION)
