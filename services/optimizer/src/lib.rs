//! Who should do it: the queue, placement, learning.
