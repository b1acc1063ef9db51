"""A command that was parsed, as the words that say it again to another process."""

from collections.abc import Set as AbstractSet

import typer


def words_of(context: typer.Context, *, without: AbstractSet[str] = frozenset()) -> list[str]:
    """The command of a context with what its user gave, and nothing that comes of defaults or of the environment.

    Args:
        without: names of parameters to leave out.

    Returns:
        words that no shell has read, `["launch", "cmsp_curriculum:tiny", "--name=first"]`: a shell must have them quoted.
    """
    words = [str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in without or source is None or source.name != "COMMANDLINE":
            continue
        given = context.params[name]
        if parameter.param_type_name == "argument":
            words.append(str(given))
        elif isinstance(given, bool):
            words.append(parameter.opts[0] if given else parameter.secondary_opts[0])
        else:
            values = given if isinstance(given, list | tuple) else [given]
            words += [f"{parameter.opts[0]}={value}" for value in values]
    return words
