"""`mmrl train` that notes, as evaluations and stages begin, what of the stages before is still in memory."""

import os
import sys
import weakref
from pathlib import Path

import torch

from lightning_mmrl.cli.main import main
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.stages.evaluate import EvaluationModule
from lightning_mmrl.stages.module import StageModule

KINDS = (StageModule, torch.optim.Optimizer, Policy)


class Watch:
    """Keeps a weak reference to each module, optimizer and policy of a stage, and notes which of them are left."""

    def __init__(self, patch=setattr):
        self.notes, self.made = [], []
        for kind in KINDS:
            patch(kind, "__init__", self._watching(kind, kind.__init__))
        patch(EvaluationModule, "__init__", self._noting(EvaluationModule.__init__))

    def _watching(self, kind, whole):
        def create(made, *args, **kwargs):
            if kind is StageModule:
                self.note("stage", others=[kwargs.get("policy", args[0] if args else None)])
            whole(made, *args, **kwargs)
            self.made.append(weakref.ref(made))

        return create

    def _noting(self, whole):
        def create(made, policy, *args, **kwargs):
            self.note("evaluation", others=[policy])
            whole(made, policy, *args, **kwargs)

        return create

    def note(self, place, others):
        """The kinds of all that is left, but for the policy that has just been loaded."""
        left = [each() for each in self.made]
        names = [type(each).__name__ for each in left if each is not None and all(each is not one for one in others)]
        self.notes.append(f"{place}: {' '.join(sorted(names)) or 'nothing'}")


if __name__ == "__main__":
    watch = Watch()
    code = main(sys.argv[2:])
    Path(sys.argv[1], f"rank{os.environ.get('RANK', '0')}.txt").write_text("\n".join(watch.notes))
    sys.exit(code)
