package link

// tryWriter is what a connection may offer beside Write: a Write that does not
// wait, so that whoever has something to send can do it without waking the
// writer's goroutine. A connection whose Write waits for something of its own,
// such as a bandwidth rate, must not offer it.
type tryWriter interface {
	// TryWrite writes as much of p as the connection takes at once, perhaps
	// nothing. It is not called while a Write is under way.
	TryWrite(p []byte) (n int, err error)
}
