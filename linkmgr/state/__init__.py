"""The state directory: documents, formats, the journal. Imports `aio`, `text` and the words.

`journal` says what is kept of VMs, NICs and networks, `codec` its JSON form (the API's too),
`directory` how documents are read and written, `migrations` what makes an old format the next one.
"""
