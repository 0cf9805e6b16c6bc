"""The dispatcher beside what people would pick instead, each in an environment of its own.

    python -m benchmarks.peers matrix            # everything, round by round
    python -m benchmarks.peers peer huey-sqlite  # one contestant
    python -m benchmarks.peers list              # who takes part, and with which settings
    python -m benchmarks.peers page              # docs/benchmarks.md from the results

`contestants` says who takes part, `matrix` what is measured and in which order,
`environments` makes the virtual environments, `page` and `plots` write the
documentation. What runs inside an environment is `drive` and one module of
`drivers`, which need nothing but the standard library and the peer.
"""
