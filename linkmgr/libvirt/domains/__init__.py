"""Domains and their desired cables: hooks, events, verbs, migration, link state.

`controller` hears of a domain and `applier` plugs what it asks for; `hook_handler` answers the
hook, `verbs` has plug, unplug and link with `--config`, `domains` what is kept of each domain.
"""
