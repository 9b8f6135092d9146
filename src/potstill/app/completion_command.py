"""The command ``potstill completion``: a script with which a shell completes words on Tab.

tyro's own completion knows one command with one set of flags; here flags depend on the command and
on the method, so the script is a table of them, written once and read without Python.
"""

from __future__ import annotations

import contextlib
import io

from potstill.run.errors import InputError

__all__ = ["command"]

_SCRIPT = """# potstill {version}: completion for bash, and for zsh after
#   autoload -U +X compinit && compinit && autoload -U +X bashcompinit && bashcompinit
_potstill() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"
  else
    case "${{COMP_WORDS[1]}}" in distill|crossval)
      [ "$COMP_CWORD" -eq 2 ] && words="{methods}" ;;
    esac
    case "$cur" in -*) case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
    esac ;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _potstill potstill
"""


def _flags(words: list[str]) -> list[str]:
    """Flags of a command, as its --help names them."""
    from potstill.app import cli

    box = io.StringIO()
    with contextlib.redirect_stdout(box), contextlib.suppress(SystemExit):
        cli.COMMANDS[words[0]]([*words[1:], "--help"])
    lines = [line.strip() for line in box.getvalue().splitlines()]
    said = [line.split("  ")[0] for line in lines if line.startswith("--")]
    return [word for one in said for word in one.replace(",", " ").split() if word[:2] == "--"]


def command(words: list[str]) -> str:
    """Return the script for ``potstill completion bash`` (or zsh, which reads the same)."""
    from potstill import __version__
    from potstill.app import cli
    from potstill.methods import CATALOGUE

    if words[:1] in ([], ["-h"], ["--help"]):
        return (
            "usage: potstill completion bash|zsh\n\n"
            "bash:  potstill completion bash > ~/.potstill-completion, source it in ~/.bashrc\n"
            "zsh:   potstill completion zsh > ~/.potstill-completion, source it in ~/.zshrc"
        )
    if words not in (["bash"], ["zsh"]):
        raise InputError(f"shell is {' '.join(words)!r}; use bash or zsh")
    cases = [
        f'      "{command} {name}") words="{" ".join(_flags([command, name]))}" ;;'
        for command in ("distill", "crossval")
        for name in CATALOGUE
    ]
    plain = ("evaluate", "import", "relabel", "report", "compare", "recipe", "push")
    cases += [f'      "{one} "*) words="{" ".join(_flags([one]))}" ;;' for one in plain]
    table = {"commands": " ".join(cli.COMMANDS), "methods": " ".join(CATALOGUE)}
    return _SCRIPT.format(version=__version__, cases="\n".join(cases), **table).rstrip()
