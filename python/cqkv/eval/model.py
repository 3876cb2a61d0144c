"""A model class of lm-evaluation-harness over llama-cpp-python, whose cache is coded or not. In the
same process, since llama-server cannot score continuations."""

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import cqkv
from cqkv.eval.scorer import Scorer


class CacheLM(TemplateLM):
    """Greedy and with all logits; one request at a time."""

    def __init__(self, llm):
        super().__init__()
        self._llm = llm
        self._scorer = Scorer(llm)

    def close(self):
        self._scorer.close()
        self._llm.close()

    @property
    def eot_token_id(self):
        return self._llm.token_eos()

    @property
    def prefix_token_id(self):
        bos = self._llm.token_bos()
        return bos if bos >= 0 else self.eot_token_id

    @property
    def max_length(self):
        return self._llm.n_ctx()

    @property
    def max_gen_toks(self):
        return 256

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self._llm.tokenize(string.encode(), add_bos=bool(add_special_tokens), special=True)

    # The harness would cut the beginning off without a word, and with it what is asked for.
    def _check_room(self, n_context, n_more):
        if n_context + n_more > self.max_length:
            raise cqkv.Error(f"a prompt of {n_context} tokens and {n_more} more do not fit into a "
                             f"context of {self.max_length}: give a larger one (-c)")

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        self._scorer.forget()
        # What begins alike stands together, so that it is decoded once.
        order = sorted(range(len(requests)), key=lambda i: requests[i][1])
        results = [None] * len(requests)
        for i in tqdm(order, disable=disable_tqdm, desc="scoring"):
            _, context, continuation = requests[i]
            self._check_room(len(context), len(continuation))
            results[i] = self._scorer.score(list(context), list(continuation))
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        results = []
        for request in tqdm(requests, disable=disable_tqdm, desc="scoring texts"):
            windows = map(make_disjoint_window, get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length - 1, 1))
            self._scorer.forget()
            results.append(sum(self._scorer.score(context, continuation)[0]
                               for context, continuation in windows))
        return results

    def generate_until(self, requests, disable_tqdm=False):
        self._scorer.forget()
        results = []
        for request in tqdm(requests, disable=disable_tqdm, desc="generating"):
            prompt, options = request.args
            until = options.get("until") or []
            n = options.get("max_gen_toks", self.max_gen_toks)
            tokens = self.tok_encode(prompt)
            self._check_room(len(tokens), n)
            answer = self._llm.create_completion(
                tokens, max_tokens=n, temperature=0.0,
                stop=[until] if isinstance(until, str) else list(until))
            results.append(answer["choices"][0]["text"])
        return results
