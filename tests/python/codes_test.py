"""Codebooks, codes and the cache of the Python package against NumPy."""

import os
import tempfile
import threading
import unittest

import numpy as np

import cqkv

N_HEADS, HEAD_DIM = 2, 32


def book(n_layers=1, window=0, sinks=0, n_rows=700):
    """Keys with groups of 8 channels, values of 4."""
    rng = np.random.default_rng(1)
    made = cqkv.Codebook(n_layers, window=window, sinks=sinks)
    for layer in range(n_layers):
        for kind, group_dim in (("keys", 8), ("values", 4)):
            made.learn(layer, kind, rng.standard_normal((n_rows, N_HEADS * HEAD_DIM)), N_HEADS,
                       group_dim=group_dim)
    return made


def centroids(codebook, layer, kind):
    """[n_codes, 256, channels of a group], by decoding."""
    shape = codebook.shape(layer, kind)
    every = np.repeat(np.arange(256)[:, None], shape.n_codes, axis=1)
    rows = codebook.decode(layer, kind, every)
    return rows.reshape(256, shape.n_codes, -1).transpose(1, 0, 2)


def nearest(codebook, layer, kind, rows):
    table = centroids(codebook, layer, kind).astype(np.float64)
    groups = rows.reshape(len(rows), len(table), -1).astype(np.float64)
    distances = ((groups[:, :, None, :] - table[None]) ** 2).sum(-1)  # [row, group, centroid]
    return distances.argmin(-1), distances


class CodebookTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.book = book()
        cls.rows = np.random.default_rng(2).standard_normal((50, N_HEADS * HEAD_DIM))
        cls.rows = cls.rows.astype(np.float32)

    def test_shape(self):
        self.assertEqual(self.book.shape(0, "keys"), cqkv.Shape(N_HEADS, HEAD_DIM, 8, 8))
        self.assertEqual(self.book.shape(0, "values").n_codes, 16)
        self.assertEqual(self.book.bits_per_channel, 1.5)
        self.assertEqual(self.book.n_layers, 1)

    def test_codes_are_of_the_nearest_centroids(self):
        for kind in ("keys", "values"):
            codes = self.book.encode(0, kind, self.rows)
            wanted, distances = nearest(self.book, 0, kind, self.rows)
            differ = codes != wanted  # only where two are equally near, but for rounding
            chosen = np.take_along_axis(distances, codes[..., None].astype(int), -1)[..., 0]
            self.assertLess(differ.mean(), 0.01)
            np.testing.assert_allclose(chosen, distances.min(-1), rtol=1e-5)

    def test_decode_gives_the_centroids(self):
        codes = self.book.encode(0, "keys", self.rows)
        table = centroids(self.book, 0, "keys")
        expected = table[np.arange(8)[None, :], codes].reshape(self.rows.shape)
        np.testing.assert_array_equal(self.book.decode(0, "keys", codes), expected)

    def test_learning_loses_what_it_says(self):
        rows = np.random.default_rng(3).standard_normal((600, N_HEADS * HEAD_DIM))
        made = cqkv.Codebook(1)
        error = made.learn(0, "keys", rows, N_HEADS)
        rows = rows.astype(np.float32)
        left = rows - made.decode(0, "keys", made.encode(0, "keys", rows))
        groups = (600, 8, 8)
        shares = ((left.reshape(groups) ** 2).sum((0, 2))
                  / ((rows - rows.mean(0)).reshape(groups) ** 2).sum((0, 2)))
        self.assertAlmostEqual(error, shares.mean(), places=3)

    def test_learning_does_not_depend_on_threads_and_heeds_weights(self):
        rng = np.random.default_rng(4)
        rows = rng.standard_normal((400, N_HEADS * HEAD_DIM))
        weights = np.where(np.arange(400) < 256, 1.0, 0.0)[:, None] * np.ones(8)
        made = [cqkv.Codebook(1) for _ in range(3)]
        for codebook, threads, given in zip(made, (1, 2, 2), (None, None, weights)):
            codebook.learn(0, "values", rows, N_HEADS, weights=given, n_threads=threads)
        alike, other, weighted = (centroids(codebook, 0, "values") for codebook in made)
        np.testing.assert_array_equal(alike, other)
        self.assertTrue((alike != weighted).any())
        # As many centroids as rows that count: nothing is lost of these.
        codes = made[2].encode(0, "values", rows[:256])
        np.testing.assert_allclose(made[2].decode(0, "values", codes), rows[:256], atol=2e-3)

    def test_a_saved_codebook_is_the_same(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "book.gguf")
            self.book.save(path)
            again = cqkv.Codebook.open(path)
        self.assertRegex(again.identity, "^[0-9a-f]{16}$")
        self.assertEqual(again.identity, self.book.identity)
        self.assertNotEqual(again.identity, book(n_rows=600).identity)
        np.testing.assert_array_equal(again.encode(0, "keys", self.rows),
                                      self.book.encode(0, "keys", self.rows))

    def test_rows_of_any_type_and_layout(self):
        expected = self.book.encode(0, "keys", self.rows)
        for rows in (self.rows.astype(np.float64), np.asfortranarray(self.rows),
                     np.repeat(self.rows, 2, axis=0)[::2], self.rows.tolist()):
            np.testing.assert_array_equal(self.book.encode(0, "keys", rows), expected)
        self.assertEqual(self.book.encode(0, "keys", self.rows[:0]).shape, (0, 8))

    def test_wrong_use_is_named(self):
        codes = self.book.encode(0, "keys", self.rows)
        for call, words in (
                (lambda: self.book.encode(0, "keys", self.rows[:, :8]), r"\(50, 8\).*\(n, 64\)"),
                (lambda: self.book.encode(0, "key", self.rows), "'key'.*'keys' or 'values'"),
                (lambda: self.book.encode(3, "keys", self.rows), "3"),
                (lambda: self.book.encode(0, "keys", np.vstack([self.rows[:3], self.rows[:1] * np.nan])),
                 "row 3 .*not finite"),
                (lambda: self.book.decode(0, "keys", codes[:, :3]), r"\(50, 3\).*\(n, 8\)"),
                (lambda: self.book.decode(0, "keys", codes.astype(int) + 256), "0 to 255"),
                (lambda: self.book.decode(0, "keys", codes / 2), "float64.*whole"),
                (lambda: self.book.learn(0, "keys", self.rows, 3), "3 KV heads"),
                (lambda: self.book.learn(0, "keys", self.rows, 2, group_dim=5), "5.*divisor of 32"),
                (lambda: self.book.learn(0, "keys", self.rows, 2), "50"),
                (lambda: cqkv.Codebook.open("/nowhere.gguf"), "/nowhere.gguf")):
            with self.assertRaisesRegex(cqkv.Error, words):
                call()
        with self.assertRaises(cqkv.Error) as caught:
            cqkv.Codebook.open("/nowhere.gguf")
        self.assertEqual(caught.exception.code, "not found")

    def test_a_codebook_in_use_stays_as_it_is(self):
        made = book()
        cache = cqkv.Cache(made, 64)
        with self.assertRaisesRegex(cqkv.Error, "1 caches use"):
            made.learn(0, "keys", self.rows, N_HEADS)
        del cache
        made.learn(0, "keys", np.repeat(self.rows, 6, axis=0), N_HEADS)

    def test_numbers_that_c_would_cut(self):
        for call, words in ((lambda: self.book.shape(2**32, "keys"), "layer: got 4294967296"),
                            (lambda: self.book.shape("0", "keys"), "layer: got '0'"),
                            (lambda: self.book.shape(0, ["keys"]), "'keys' or 'values'"),
                            (lambda: cqkv.Cache(self.book, -1), "n_cells: got -1"),
                            (lambda: cqkv.Cache(self.book, 64).plan([0.7]), "0.7.*whole"),
                            (lambda: cqkv.Cache(self.book, 64).save(0, -1), "n: got -1"),
                            (lambda: cqkv.Codebook.open("a\0b"), "zero byte"),
                            (lambda: cqkv.Codebook.open(b"/nowhere\xff"), "nowhere")):
            with self.assertRaisesRegex(cqkv.Error, words):
                call()

    def test_a_side_that_is_not_coded(self):
        made = cqkv.Codebook(2)
        self.assertIsNone(made.shape(1, "keys"))
        with self.assertRaisesRegex(cqkv.Error, "layer 1: .* keys"):
            made.encode(1, "keys", self.rows)

    def test_threads_share_a_codebook(self):
        expected = self.book.encode(0, "keys", self.rows)
        wrong = []

        def check():
            for _ in range(50):
                if (self.book.encode(0, "keys", self.rows) != expected).any():
                    wrong.append(1)

        threads = [threading.Thread(target=check) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


def attention(queries, keys, values, seen):
    """[n, heads, dim] over [t, KV heads, dim], those that seen[n, t] says."""
    ratio = queries.shape[1] // keys.shape[1]
    keys, values = (np.repeat(x, ratio, axis=1).astype(np.float64) for x in (keys, values))
    scores = np.einsum("nhd,thd->nht", queries, keys) / np.sqrt(queries.shape[2])
    scores = np.where(seen[:, None, :], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nht,thd->nhd", weights / weights.sum(-1, keepdims=True), values)


def rotate(rows, positions, n_heads):
    """RoPE, channel i with i + HEAD_DIM / 2."""
    half = HEAD_DIM // 2
    angles = np.asarray(positions)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    heads = rows.reshape(len(rows), n_heads, HEAD_DIM).astype(np.float64)
    first, second = heads[..., :half], heads[..., half:]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


class CacheTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.book = book(n_layers=2)
        rng = np.random.default_rng(6)
        cls.keys, cls.values = (rng.standard_normal((80, N_HEADS * HEAD_DIM)).astype(np.float32)
                                for _ in range(2))
        cls.queries = rng.standard_normal((80, 4, HEAD_DIM)).astype(np.float32)

    def run_steps(self, cache, sizes, rope=None, keys=None):
        """All tokens, so many a step; both layers; the outputs of layer 0."""
        keys = self.keys if keys is None else keys
        first, out = 0, []
        for size in sizes:
            part = slice(first, first + size)
            cache.plan(np.arange(first, first + size))
            for layer in (0, 1):
                cache.store_keys(layer, keys[part], rope)
                cache.store_values(layer, self.values[part])
                result = cache.attend(layer, self.queries[part])
                out.extend(result if layer == 0 else [])
            cache.commit()
            first += size
        return np.array(out)

    def decoded(self, kind, rows):
        found = self.book.decode(0, kind, self.book.encode(0, kind, rows))
        return found.reshape(len(rows), N_HEADS, HEAD_DIM)

    def test_attention_on_codes(self):
        got = self.run_steps(cqkv.Cache(self.book, 128), (80,))
        expected = attention(self.queries, self.decoded("keys", self.keys),
                             self.decoded("values", self.values), np.tri(80, dtype=bool))
        # Attention reads centroids as bytes.
        np.testing.assert_allclose(got, expected, atol=0.03)
        self.assertLess(np.abs(got - expected).mean(), 0.004)

    def test_keys_are_coded_before_their_rotation(self):
        rotated = rotate(self.keys, np.arange(80), N_HEADS).reshape(80, -1)
        got = self.run_steps(cqkv.Cache(self.book, 128), (80,), cqkv.Rope(HEAD_DIM), rotated)
        keys = rotate(self.decoded("keys", self.keys).reshape(80, -1), np.arange(80), N_HEADS)
        expected = attention(self.queries, keys, self.decoded("values", self.values),
                             np.tri(80, dtype=bool))
        self.assertLess(np.abs(got - expected).mean(), 0.005)

    def test_the_window_is_exact(self):
        got = self.run_steps(cqkv.Cache(self.book, 128, window=80), (80,))
        expected = attention(self.queries, self.keys.reshape(80, N_HEADS, -1),
                             self.values.reshape(80, N_HEADS, -1), np.tri(80, dtype=bool))
        # Exact rows are 16-bit floats.
        np.testing.assert_allclose(got, expected, atol=0.02)
        self.assertLess(np.abs(got - expected).mean(), 1e-3)

    def test_steps_do_not_matter(self):
        whole = self.run_steps(cqkv.Cache(self.book, 128), (80,))
        for sizes in ((1,) * 80, (50, 30), (7, 64, 9)):
            cache = cqkv.Cache(self.book, 128, n_threads=2)
            np.testing.assert_array_equal(self.run_steps(cache, sizes), whole)

    def test_a_mask_says_what_is_seen(self):
        cache = cqkv.Cache(self.book, 128)
        self.run_steps(cache, (80,))
        seen = np.zeros((1, 128), dtype=bool)
        seen[0, 3:40] = True
        cache.plan([80])
        cache.store_keys(0, self.keys[:1])
        cache.store_values(0, self.values[:1])
        got = cache.attend(0, self.queries[:1], mask=np.where(seen, 0, -np.inf))
        expected = attention(self.queries[:1], self.decoded("keys", self.keys),
                             self.decoded("values", self.values), seen[:, :80])
        self.assertLess(np.abs(got - expected).mean(), 0.005)

    def test_saved_cells_come_back(self):
        cache = cqkv.Cache(self.book, 128)
        self.run_steps(cache, (79,))
        saved = cache.save(0, 79)
        other = cqkv.Cache(self.book, 128)
        other.load(0, 79, saved)
        last = []
        for each in (cache, other):
            each.plan([79])
            each.store_keys(0, self.keys[79:])
            each.store_values(0, self.values[79:])
            last.append(each.attend(0, self.queries[79:]))
            each.abandon()
        np.testing.assert_array_equal(*last)
        with self.assertRaisesRegex(cqkv.Error, "bytes, want .* for 70 cells"):
            other.load(0, 70, saved)

    def test_a_wrong_order_is_refused(self):
        cache = cqkv.Cache(self.book, 64)
        for call in (lambda: cache.store_keys(0, self.keys[:0]), cache.commit,
                     lambda: cache.attend(0, self.queries[:0])):
            with self.assertRaises(cqkv.Error):
                call()
        cache.plan([0, 1])
        with self.assertRaisesRegex(cqkv.Error, "got 3 rows, want one for each of the 2"):
            cache.store_keys(0, self.keys[:3])
        with self.assertRaisesRegex(cqkv.Error, r"\(2, a multiple of 2, 32\)"):
            cache.attend(0, self.queries[:3])
        with self.assertRaises(cqkv.Error):
            cache.plan([2])

    def test_it_is_smaller_than_16_bits(self):
        cache = cqkv.Cache(self.book, 4096)
        self.assertLess(cache.nbytes, 4096 * 2 * 2 * N_HEADS * HEAD_DIM * 2 / 4)
        self.assertGreater(cache.nbytes, 4096 * 2 * (8 + 16))

    def test_the_codebook_outlives_its_name(self):
        cache = cqkv.Cache(book(n_layers=2), 128)
        self.assertEqual(self.run_steps(cache, (80,)).shape, (80, 4, HEAD_DIM))


if __name__ == "__main__":
    unittest.main()
