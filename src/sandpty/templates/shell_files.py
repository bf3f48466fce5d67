"""What shells read when they start in a sandbox.

Debian's own files run `id`, `lesspipe` and `dircolors` in every new shell: 2-4 ms, more than a warm sandbox takes
to be claimed. These give the same prompt, PATH and colours without starting a program.
"""

from __future__ import annotations

import os
from pathlib import Path

from sandpty.templates.guest import USER_ID

PROFILE = r"""# /etc/profile: read by login shells. It starts no program, so that shells start quickly.
if [ "${EUID:-$(id -u)}" -eq 0 ]; then
  PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
else
  PATH="/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
fi
export PATH
if [ -n "${PS1-}" ]; then
  if [ -n "${BASH-}" ] && [ "$BASH" != "/bin/sh" ]; then
    [ -f /etc/bash.bashrc ] && . /etc/bash.bashrc
  elif [ "${EUID:-$(id -u)}" -eq 0 ]; then
    PS1='# '
  else
    PS1='$ '
  fi
fi
for i in /etc/profile.d/*.sh; do
  [ -r "$i" ] && . "$i"
done
unset i
"""

BASH_BASHRC = r"""# /etc/bash.bashrc: read by interactive bash shells.
[ -z "$PS1" ] && return
shopt -s checkwinsize
PS1='\u@\h:\w\$ '
"""

HOME_PROFILE = r"""# ~/.profile: read by login shells.
[ -n "$BASH_VERSION" ] && [ -f "$HOME/.bashrc" ] && . "$HOME/.bashrc"
[ -d "$HOME/bin" ] && PATH="$HOME/bin:$PATH"
[ -d "$HOME/.local/bin" ] && PATH="$HOME/.local/bin:$PATH"
:
"""

HOME_BASHRC = r"""# ~/.bashrc: read by interactive bash shells. It starts no program, so that shells start quickly.
case $- in
  *i*) ;;
  *) return ;;
esac
HISTCONTROL=ignoreboth
HISTSIZE=1000
HISTFILESIZE=2000
shopt -s histappend checkwinsize
case "$TERM" in
  xterm*|rxvt*) PS1='\[\e]0;\u@\h: \w\a\]\[\033[01;32m\]\u@\h\[\033[00m\]:\[\033[01;34m\]\w\[\033[00m\]\$ ' ;;
  *color*) PS1='\[\033[01;32m\]\u@\h\[\033[00m\]:\[\033[01;34m\]\w\[\033[00m\]\$ ' ;;
  *) PS1='\u@\h:\w\$ ' ;;
esac
alias ls='ls --color=auto' grep='grep --color=auto' ll='ls -alF' la='ls -A'
[ -f ~/.bash_aliases ] && . ~/.bash_aliases
:
"""


def write_shell_files(root: Path) -> None:
    """Into /etc, /etc/skel, /root and /home/user of a template's root file system."""
    _write(root / "etc/profile", PROFILE)
    _write(root / "etc/bash.bashrc", BASH_BASHRC)
    for home, owner in (("etc/skel", 0), ("root", 0), ("home/user", USER_ID)):
        for name, text in ((".profile", HOME_PROFILE), (".bashrc", HOME_BASHRC)):
            (root / home).mkdir(parents=True, exist_ok=True)
            os.chown(_write(root / home / name, text), owner, owner)


def _write(path: Path, text: str) -> Path:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="ascii")
    path.chmod(0o644)
    return path
