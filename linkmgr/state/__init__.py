"""The state directory: documents, formats, the journal. Imports `aio` and the words."""
