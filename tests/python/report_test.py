"""Paired differences of cqkv.eval, by hand."""

import math
import unittest

from cqkv.eval import report


def sample(question, **metrics):
    return {"doc_id": question, "filter": "none", "metrics": list(metrics), **metrics}


class ReportTest(unittest.TestCase):
    def test_mean_and_error(self):
        mean, error = report.mean_and_error([1.0, 2.0, 3.0, 6.0])
        self.assertEqual(mean, 3.0)
        self.assertAlmostEqual(error, math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
        self.assertTrue(math.isnan(report.mean_and_error([1.0])[1]))

    # Two caches that differ on one question of four: the difference is as certain as that, however
    # uncertain both scores are.
    def test_differences_are_paired(self):
        base = report.scores([sample(q, acc=a) for q, a in enumerate([1, 0, 1, 1])])
        other = report.scores([sample(q, acc=a) for q, a in reversed(list(enumerate([1, 0, 0, 1])))])
        found = report.compare(base["acc"], other["acc"])
        self.assertEqual((found["mean"], found["difference"], found["n"]), (0.5, -0.25, 4))
        self.assertAlmostEqual(found["difference_se"], 0.25)
        self.assertEqual(report.compare(base["acc"], base["acc"])["difference_se"], 0)

    def test_other_questions_are_refused(self):
        with self.assertRaises(ValueError):
            report.compare({0: 1.0, 1: 0.0}, {0: 1.0, 2: 0.0})

    def test_filters_have_names(self):
        samples = [sample(0, exact_match=1), {**sample(0, exact_match=0), "filter": "flexible"}]
        self.assertEqual(report.scores(samples),
                         {"exact_match (none)": {0: 1.0}, "exact_match (flexible)": {0: 0.0}})

    def test_table(self):
        results = {cache: {"piqa": report.scores([sample(q, acc=a) for q, a in enumerate(scores)])}
                   for cache, scores in (("f16", [1, 1]), ("coded", [1, 0]))}
        text = report.table(report.rows(results)).splitlines()
        self.assertEqual(text[2], "| piqa acc | f16 | 1.000 ± 0.000 |  | 2 |")
        self.assertEqual(text[3], "| piqa acc | coded | 0.500 ± 0.500 | -0.500 ± 0.500 | 2 |")


if __name__ == "__main__":
    unittest.main()
