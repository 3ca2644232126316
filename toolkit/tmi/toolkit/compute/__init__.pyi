from .buffer_pool import ArrayAllocator as ArrayAllocator
from .buffer_pool import BufferPool as BufferPool
from .cpu import available_cores as available_cores
from .cpu import worker_pool as worker_pool
from .silence import Ignored as Ignored
from .silence import quiet as quiet
from .stage_timer import StageTimer as StageTimer
from .telemetry import disable_telemetry as disable_telemetry
