"""Completion for bash, zsh and fish: commands, options, the words that an option takes, else names of files. Pure."""

from edge_runtime.command_pages.parser_tree import Command, Option


def bash(program: Command, name: str) -> str:
    """A script for /usr/share/bash-completion/completions."""
    function = "_" + name.replace("-", "_")
    return f"""\
# bash completion for {name}; made of its commands
{function}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${{COMP_WORDS[i]}}" in
            {_paths(program)}) at="${{at:+$at }}${{COMP_WORDS[i]}}" ;;
        esac
    done
    COMPREPLY=()
    case "$at|$prev" in
{_cases(program, '        {pattern}) COMPREPLY=($(compgen -W "{words}" -- "$cur")); return ;;')}
{_files(program, '        {pattern}) COMPREPLY=($(compgen -f -- "$cur")); compopt -o filenames 2>/dev/null; return ;;')}
    esac
    local options="" words="" files=""
    case "$at" in
{_levels(program)}
    esac
    case "$cur" in
        -*) COMPREPLY=($(compgen -W "$options" -- "$cur")) ;;
        *)
            COMPREPLY=($(compgen -W "$words" -- "$cur"))
            if [ -n "$files" ]; then
                COMPREPLY+=($(compgen -f -- "$cur"))
                compopt -o filenames 2>/dev/null
            fi ;;
    esac
}}
complete -F {function} {name}
"""


def zsh(program: Command, name: str) -> str:
    """A script for /usr/share/zsh/vendor-completions."""
    return f"""\
#compdef {name}
# zsh completion for {name}; made of its commands
local at="" prev="$words[CURRENT-1]" word
for word in "${{(@)words[2,CURRENT-1]}}"; do
    case "$at $word" in
        ({_paths(program)}) at="${{at:+$at }}$word" ;;
    esac
done
case "$at|$prev" in
{_cases(program, "    ({pattern}) compadd -- {words}; return ;;")}
{_files(program, "    ({pattern}) _files; return ;;")}
esac
local -a commands options
local files=""
case "$at" in
{_zsh_levels(program)}
esac
if [[ "$words[CURRENT]" == -* ]]; then
    _describe -o option options
else
    (( $#commands )) && _describe command commands
    [[ -n "$files" ]] && _files
fi
return 0
"""


def fish(program: Command, name: str) -> str:
    """A script for /usr/share/fish/vendor_completions.d."""
    function = "__" + name.replace("-", "_") + "_at"
    known = " ".join(_fish_quoted(" ".join(each.path)) for each in program.walk() if each.path)
    lines = [
        f"# fish completion for {name}; made of its commands",
        f"function {function}",
        "    set -l at ''",
        "    for word in (commandline -opc)[2..-1]",
        '        set -l next (string trim -- "$at $word")',
        f"        contains -- $next {known}; and set at $next",
        "    end",
        '    test "$at" = "$argv[1]"',
        "end",
        f"complete -c {name} -f",
    ]
    for command in program.walk():
        here = f"complete -c {name} -n '{function} \"{' '.join(command.path)}\"'"
        lines += [f"{here} -a {each.path[-1]} -d {_fish_quoted(each.text)}" for each in command.commands]
        for option in command.options:
            flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            value = ""
            if option.choices:
                value = f" -x -a {_fish_quoted(' '.join(option.choices))}"
            elif option.value:
                value = " -r -F"
            lines.append(f"{here} {flags}{value} -d {_fish_quoted(option.text)}")
        choices = [word for argument in command.arguments for word in argument.choices]
        if choices:
            lines.append(f"{here} -a {_fish_quoted(' '.join(choices))}")
        elif command.arguments:
            lines.append(f"{here} -F")
    return "\n".join(lines) + "\n"


def _paths(program: Command) -> str:
    """The pattern of a further word that is a command after the given words."""
    return "|".join(f'"{" ".join(each.path[:-1])} {each.path[-1]}"' for each in program.walk() if each.path)


def _taking(program: Command) -> list[tuple[Command, Option]]:
    """Options with a value, by command; an option of a parent may stand behind the command too."""
    return [
        (command, option) for command in program.walk() for option in command.options if option.value or option.choices
    ]


def _cases(program: Command, line: str) -> str:
    found = [
        line.format(pattern=_pattern(command, option), words=" ".join(option.choices))
        for command, option in _taking(program)
        if option.choices
    ]
    return "\n".join(found)


def _files(program: Command, line: str) -> str:
    patterns = [_pattern(command, option) for command, option in _taking(program) if not option.choices]
    return line.format(pattern="|".join(patterns)) if patterns else ""


def _pattern(command: Command, option: Option) -> str:
    return "|".join(f'"{" ".join(command.path)}|{flag}"' for flag in option.flags)


def _levels(program: Command) -> str:
    lines = []
    for command in program.walk():
        words = [each.path[-1] for each in command.commands]
        words += [word for argument in command.arguments for word in argument.choices]
        options = [flag for option in command.options for flag in option.flags]
        files = "yes" if any(not argument.choices for argument in command.arguments) else ""
        lines.append(
            f'        "{" ".join(command.path)}") options="{" ".join(options)}" words="{" ".join(words)}" '
            f'files="{files}" ;;'
        )
    return "\n".join(lines)


def _zsh_levels(program: Command) -> str:
    lines = []
    for command in program.walk():
        words = [_zsh_item(each.path[-1], each.text) for each in command.commands]
        words += [_zsh_item(word, "") for argument in command.arguments for word in argument.choices]
        options = [_zsh_item(flag, option.text) for option in command.options for flag in option.flags]
        files = "yes" if any(not argument.choices for argument in command.arguments) else ""
        given = f'options=({" ".join(options)}) commands=({" ".join(words)}) files="{files}"'
        lines.append(f'    ("{" ".join(command.path)}") {given} ;;')
    return "\n".join(lines)


def _zsh_item(word: str, text: str) -> str:
    shown = f"{word}:{text}" if text else word
    return "'" + shown.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
