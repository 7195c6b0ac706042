package link

// BufferMemory is what a link borrows for writing at most, in bytes.
const BufferMemory = largeBuffer

// Writing tells whether the link has something to write, or is writing.
func (l *Link) Writing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.free && !l.closed
}
