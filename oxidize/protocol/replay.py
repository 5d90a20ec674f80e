"""The replay window: no counter is accepted twice, whatever instant the process dies at.

The rule: a counter that was once marked never becomes fresh again, even when the process is killed between any two
stores and another process continues with the same memory. The window is a ring of 64-bit words, one for each block of
64 counters. Three properties keep the rule:

- The words of the blocks up to that of the highest counter are valid; the word of a later block is not read, and is
  replaced before RECEIVE_NEXT makes it valid.
- RECEIVE_NEXT only grows, and passes one block at a time.
- The ring has one word more than a window can touch, so the word that is replaced for the next block belongs to a
  block that the window has already left.

RECEIVE_NEXT grows before the bit of its counter is set: a process that dies in between has not delivered the packet,
and its counter is still fresh.

In all functions `words` are the device's counters, and `slot` is the index of the first word of the keypair's slot
(`protocol.counters`).

Sources: the paper, section 5.4.6; RFC 6479.
"""

from oxidize.errors import StateError
from oxidize.protocol.constants import REJECT_AFTER_MESSAGES
from oxidize.protocol.counters import RECEIVE_NEXT, REPLAY_BITMAP, REPLAY_WORDS, Counters

BLOCK_BITS = 64
BLOCK_SHIFT = 6
BLOCK_MASK = BLOCK_BITS - 1

# A window of n whole blocks touches n + 1 of them when it is not aligned; one more word is being replaced.
WINDOW_SIZE = (REPLAY_WORDS - 2) * BLOCK_BITS


def is_fresh(words: Counters, slot: int, counter: int) -> bool:
    """Return whether `counter` is unmarked, not too old for the window, and below REJECT_AFTER_MESSAGES.

    Changes nothing: a counter is marked only after its packet was authenticated.
    """
    receive_next = words[slot + RECEIVE_NEXT]
    if counter >= receive_next:
        return counter < REJECT_AFTER_MESSAGES
    if receive_next - counter > WINDOW_SIZE:
        return False
    word = words[slot + REPLAY_BITMAP + (counter >> BLOCK_SHIFT) % REPLAY_WORDS]
    return not word >> (counter & BLOCK_MASK) & 1


def mark(words: Counters, slot: int, counter: int) -> bool:
    """Mark an authenticated counter before its packet is delivered; return False, unchanged, if it is not fresh."""
    receive_next = words[slot + RECEIVE_NEXT]
    block = counter >> BLOCK_SHIFT
    bit = 1 << (counter & BLOCK_MASK)
    if counter >= receive_next:
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        if block == (receive_next - 1) >> BLOCK_SHIFT:
            words[slot + RECEIVE_NEXT] = counter + 1
            words[slot + REPLAY_BITMAP + block % REPLAY_WORDS] |= bit
        else:
            _enter_block(words, slot, block, bit, counter + 1)
        return True
    if receive_next - counter > WINDOW_SIZE:
        return False
    index = slot + REPLAY_BITMAP + block % REPLAY_WORDS
    if words[index] & bit:
        return False
    words[index] |= bit
    return True


def mark_run(words: Counters, slot: int, first: int, count: int) -> None:
    """Mark `count` authenticated counters from `first` on, all above any before: like `mark` of each, but faster.

    Raises StateError, with nothing marked, when `first` is below RECEIVE_NEXT or the run reaches REJECT_AFTER_MESSAGES.
    """
    receive_next = words[slot + RECEIVE_NEXT]
    end = first + count
    if first < receive_next or end > REJECT_AFTER_MESSAGES:
        raise StateError(
            f"cannot mark the run of counters {first} to {end - 1}: expected one between {receive_next} and "
            f"{REJECT_AFTER_MESSAGES - 1}; mark them one by one"
        )
    while first < end:
        block = first >> BLOCK_SHIFT
        run_end = min(end, (block + 1) << BLOCK_SHIFT)
        bits = ((1 << (run_end - first)) - 1) << (first & BLOCK_MASK)
        if block == (words[slot + RECEIVE_NEXT] - 1) >> BLOCK_SHIFT:
            words[slot + RECEIVE_NEXT] = run_end
            words[slot + REPLAY_BITMAP + block % REPLAY_WORDS] |= bits
        else:
            _enter_block(words, slot, block, bits, run_end)
        first = run_end


def _enter_block(words: Counters, slot: int, block: int, bits: int, receive_next: int) -> None:
    """Advance the window into a later block than that of the highest counter, and mark `bits` there.

    Blocks in between are cleared one at a time, each before RECEIVE_NEXT passes it. The last store makes the marks
    valid, all at once.
    """
    last = (words[slot + RECEIVE_NEXT] - 1) >> BLOCK_SHIFT
    if block - last > REPLAY_WORDS:
        # A jump past the whole ring: skip the distance at once, so that the loop below goes round only once. Until it
        # has, a skipped block may show the bits of an older one: a process that dies here makes its successor refuse
        # counters that never came, but accept none that did.
        last = block - REPLAY_WORDS
        words[slot + RECEIVE_NEXT] = (last + 1) << BLOCK_SHIFT
    for skipped in range(last + 1, block):
        words[slot + REPLAY_BITMAP + skipped % REPLAY_WORDS] = 0
        words[slot + RECEIVE_NEXT] = (skipped + 1) << BLOCK_SHIFT
    words[slot + REPLAY_BITMAP + block % REPLAY_WORDS] = bits
    words[slot + RECEIVE_NEXT] = receive_next
