//! A driver for tests, over real RAM and the transport's own registers.
