# Completion of `oxidize` for bash-completion, which loads this file at the first <Tab>: the command prints it itself.
eval "$(_OXIDIZE_COMPLETE=bash_source oxidize)"
