"""The four hosts of the service, each a function from a request to a response.

`auth` issues the tokens that `accounts` verifies on every other host. `api` admits a request by the policy and the
limits of `access`, and passes it to a route: metadata and archives of its own, look-ups of `ondemand`, and files of
`commons`. Downloads are redirected to signed addresses of `store`. `realtime` admits a request in the same
way and hands it to the reader in `stream`. `http` has the responses that they share, and sends them with the damage of
faults.
"""
