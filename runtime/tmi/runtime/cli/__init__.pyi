from .bench_worker import WORKER as WORKER
