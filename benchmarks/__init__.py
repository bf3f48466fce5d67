"""What sandpty promises in figures, measured: `scripts/bench`, explained in docs/benchmarks.md."""
