"""The data that the hosts serve, made from a seed.

`articles` and `entities` make records, from the text in `prose` and with the trees of `structured`; `encoding` writes
them as the service's encoder does, and `tarball` packs them. `catalog` lists the archives that exist at a time, builds
each on first use, and has the metadata of `metadata`.
"""
