"""Differences between caches on the same questions. How they were answered is model.py's."""

import math


def scores(samples):
    """{metric: {question: score}} of one task of one cache, from the harness's samples. Metrics of
    more than one filter have its name."""
    filters = {sample["filter"] for sample in samples}
    result = {}
    for sample in samples:
        for metric in sample["metrics"]:
            name = metric if len(filters) == 1 else f"{metric} ({sample['filter']})"
            result.setdefault(name, {})[sample["doc_id"]] = float(sample[metric])
    return result


def mean_and_error(values):
    """Mean and its standard error; an error of nan for fewer than two values."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def compare(base, other):
    """One metric of two caches, {question: score} each, of the same questions."""
    if base.keys() != other.keys():
        raise ValueError("the caches were asked different questions")
    mean, error = mean_and_error(list(other.values()))
    difference, difference_error = mean_and_error([other[q] - base[q] for q in base])
    return {"mean": mean, "se": error, "difference": difference,
            "difference_se": difference_error, "n": len(other)}


def rows(results):
    """results[cache][task] = scores(...); the first cache is compared with. One dictionary for each
    task, metric and cache."""
    base_name = next(iter(results))
    out = []
    for task, metrics in results[base_name].items():
        for metric, base in metrics.items():
            for cache, found in results.items():
                out.append({"task": task, "metric": metric, "cache": cache,
                            **compare(base, found[task][metric])})
    return out


def table(lines):
    """The rows as a Markdown table; differences are of the row's cache to the first one."""
    text = ["| task | cache | score | difference | questions |", "|---|---|---|---|---|"]
    base = lines[0]["cache"] if lines else None
    for line in lines:
        difference = ("" if line["cache"] == base else
                      f"{line['difference']:+.3f} ± {line['difference_se']:.3f}")
        text.append(f"| {line['task']} {line['metric']} | {line['cache']} | {line['mean']:.3f} ± "
                    f"{line['se']:.3f} | {difference} | {line['n']} |")
    return "\n".join(text)
