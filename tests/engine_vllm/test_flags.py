"""The flags that `mmrl serve` passes on are flags of this vLLM, of the kind that they are passed on as."""

from argparse import BooleanOptionalAction

from lightning_mmrl.rollout.vllm.flags import SHORT, SWITCHES, VALUED


def test_every_flag_is_one_of_vllms():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    actions = {
        name: action for action in make_arg_parser(FlexibleArgumentParser())._actions for name in action.option_strings
    }
    assert [name for name in VALUED if actions[name].nargs is not None] == []
    assert [name for name in SWITCHES if not isinstance(actions[name], BooleanOptionalAction)] == []
    assert all(actions[short] is actions[name] for short, name in SHORT.items())
