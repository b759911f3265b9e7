"""Has the scorers that lmms-eval carries judge random answers, for tests/oracles/test_published_scores.py.

    ENV/bin/python tools/truth/published_scores.py tests/oracles/published_scores.json

ENV is an environment with lmms-eval 0.7.3 (tools/truth/lmms_eval_scores.py makes one); nothing of this package is used.
No language model is asked: MathVista's normal form and comparison, MATH-Vision's evaluation, MMMU's open answers, and
We-Math's four-dimensional metrics are rules. MATH-Vision's own evaluate.py has the names of `math` when it evaluates an
expression, and lmms-eval's copy has not; they are added here.
"""

import json
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENAI_API_KEY", "none")
NUM_CASES = 300
SEED = 7
WORDS = ("red", "blue", "dark blue", "3/4", "12 cm", "none of these", "Tilapia", "45\u00b0", "left")
NOISE = ("", "I do not know", "?", "unclear", "many")


def main() -> int:
    """Writes the cases and returns the exit code."""
    from importlib.metadata import version

    draw = random.Random(SEED)
    found = {
        "lmms_eval": version("lmms-eval"),
        "mathvista": list(mathvista(draw)),
        "math_vision": list(math_vision(draw)),
        "mmmu_open": list(mmmu_open(draw)),
        "we_math": list(we_math(draw)),
    }
    Path(sys.argv[1]).write_text(json.dumps(found, indent=0) + "\n")
    print({name: len(cases) for name, cases in found.items() if isinstance(cases, list)})
    return 0


def mathvista(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Extracted answers, with the normal form of each and whether it is right."""
    from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator

    scorer = MathVistaEvaluator()
    for _ in range(NUM_CASES):
        if draw.random() < 0.4:
            choices = draw.sample(WORDS, draw.randint(2, 5))
            answer, kind, precision = draw.choice(choices), "text", None
            letter = draw.choice("ABCDEF")
            forms = (letter, f"({letter})", f"({letter.lower()}) {draw.choice(choices)}", draw.choice(WORDS))
            text = draw.choice((*forms, draw.choice(choices)[:-1] + "x", draw.choice(choices).upper()))
            kinds = "multi_choice"
        else:
            choices, kinds = None, "free_form"
            kind, precision = draw.choice((("integer", None), ("float", 1), ("float", 2), ("list", None)))
            value = draw.choice((draw.randint(-20, 2000), round(draw.uniform(-9, 99), 3)))
            near = value + draw.choice((0, 0, 0, 0.04, 0.004, 1))
            text = draw.choice((str(value), str(near), f" {near}", f"{near:e}", *NOISE[1:]))
            answer = str(int(value)) if kind == "integer" else str(round(float(value), precision or 0))
            if kind == "list":
                years = [draw.randint(2000, 2009), draw.randint(2000, 2009)]
                answer, text = str(years), draw.choice((str(years), str(years[::-1]), str(years).replace(" ", "")))
        read = scorer.normalize_extracted_answer(text, choices, kinds, kind, precision)
        case = {"text": text, "choices": choices, "answer": answer, "answer_type": kind, "precision": precision}
        yield {**case, "read": read, "right": bool(scorer.safe_equal(read, answer))}


def math_vision(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Responses, and whether each is right."""
    from lmms_eval.tasks.mathvision import eval_utils, utils

    vars(eval_utils).update({name: value for name, value in vars(math).items() if not name.startswith("_")})
    for _ in range(NUM_CASES):
        options = draw.sample([*map(_value, [draw] * 4), *WORDS], draw.randint(2, 5)) if draw.random() < 0.4 else []
        letters = "ABCDE"[: len(options)]
        answer = draw.choice(letters) if options else _value(draw)
        own = (answer, options[letters.index(answer)] if options else answer)
        said = draw.choice((*own, _same(draw, own[-1]), draw.choice(letters or "7"), _value(draw), *NOISE[1:]))
        shape = draw.choice(
            (
                "{}",
                "({})",
                "\\boxed{{{}}}",
                "First \\boxed{{9}}, but then \\boxed{{{}}}.",
                "The answer is {}. That is all.",
                "So the final answer is {}\nDone",
                "Thus x = {}",
                "We see that it is {}.",
                "I choose ({}).",
                "I choose {}.",
                "{}\nbecause it is so",
                "$\\boxed{{\\text{{{}}}}}$",
                "x \\approx {} km",
            )
        )
        response = shape.format(said)
        scores = utils.mathvision_process_results({"answer": answer, "options": options}, [response])
        right = scores["mathvision_standard_eval"]["scores"][0]
        yield {"response": response, "options": options, "answer": answer, "right": bool(right)}


def _value(draw: random.Random) -> str:
    top, under = draw.randint(1, 30), draw.randint(1, 9)
    return draw.choice(
        (
            *(str(top), str(top), str(-top), f"{top}.5", f"{top / under:.3f}", f"\\frac{{{top}}}{{{under}}}"),
            *(f"{top}/{under}", f"\\sqrt{{{top}}}", f"{under}\\sqrt{{{top}}}", f"{top}\\pi", f"({top}, {under})"),
            *(f"{top}^{{\\circ}}", f"{top} \\%", f"\\frac{{{top}\\sqrt{{3}}}}{{{under}}}", f"{top}:{under}", "x^2"),
        )
    )


def _same(draw: random.Random, value: str) -> str:
    """Another way to write a value, or one that is nearly it."""
    try:
        number = float(value)
    except ValueError:
        return draw.choice((value.replace("frac", "dfrac"), f"{value} cm", value.upper(), f"{value} \\text{{ units}}"))
    return draw.choice((f"{number:.2f}", f"{number + 0.001}", f"{number + 0.02}", f"\\frac{{{2 * number:g}}}{{2}}"))


def mmmu_open(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Responses to open questions, and whether each is right."""
    from lmms_eval.tasks.mmmu.utils import eval_open, parse_open_response

    for _ in range(NUM_CASES):
        number = draw.choice((draw.randint(0, 5000), round(draw.uniform(-9, 9), 3)))
        answer: Any = draw.choice((str(number), "ionic bond", "B", [str(number), "ionic bond"], f"{number} mm"))
        first = answer if isinstance(answer, str) else draw.choice(answer)
        said = draw.choice((first, f"{number:,}", f"{number + 0.004:.3f}", f"{number}e2", "covalent bond", "b", *NOISE))
        shape = draw.choice(
            (
                "{}",
                "The result is {}.",
                "So x = {}",
                "First it is 3.\nThus, therefore the final answer is {}",
                "It could be {} or so",
                "answer ",
                "We add 1,200 and .5; {}",
                "A is 4\n= {}\n",
            )
        )
        response = shape.format(said)
        right = eval_open(answer, parse_open_response(response))
        yield {"response": response, "answer": str(answer), "right": bool(right)}


def we_math(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Which questions of some problems are right, and the counts of the four-dimensional metrics."""
    import pandas
    from lmms_eval.tasks.wemath.wemath_utils import calculate_metrics, compute_final_scores, process_steps_data

    for _ in range(20):
        share = draw.uniform(0.3, 0.9)
        rows = [
            {"ID": f"{steps}steps_{problem}", "key": f"{steps}steps_{step}", "joker": draw.random() < share}
            for steps in (2, 3)
            for problem in range(draw.randint(5, 30))
            for step in [*range(1, steps + 1), "multi"]
        ]
        table = pandas.DataFrame(rows)
        merged = [process_steps_data(table[table["key"].str.contains(f"{steps}steps")], steps) for steps in (2, 3)]
        metrics = calculate_metrics(*merged)
        counts, _ = compute_final_scores(metrics, total_count=len(table["ID"].unique()))
        yield {"rows": rows, "counts": {name: int(count) for name, count in counts.items()}}


if __name__ == "__main__":
    sys.exit(main())
