"""The rules of requests: pure functions from parameters to rows, records and error texts.

`query` binds and validates fields, filters and limit of a request to the main host, and selects rows of metadata by
them; `gjson` applies them to the records of look-ups. `stream_request` does the same for the streams, whose fields are
in `schema`. `go` has the error texts that both take from their libraries.
"""
