package relay

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"cepa/cell"
	"cepa/stream"
)

// Times of a directory stream; ours.
const (
	// dirRequest is how long a request may take: it is one packet, or a descriptor of
	// an onion service, 50 KB at 2 KB/s and some.
	dirRequest = 30 * time.Second
	// dirAnswer is how long an answer may take: as long as clients wait for
	// one, 1 MB at 20 KB/s and some.
	dirAnswer = 2 * time.Minute
	// dirIdle is how long a stream may stay without a request.
	dirIdle = 30 * time.Second
	// maxDirHeader is the longest head of a request in bytes.
	maxDirHeader = 8 << 10
)

// dirServer serves the consensus, and descriptors of onion services, over BEGIN_DIR streams, and over the connections of
// ServeDir. It is an http.Server whose listener hands it both.
type dirServer struct {
	limits    *limits
	streams   chan net.Conn // never full: it has room for all that open and sockets admit
	open      gauge
	sockets   gauge // of ServeDir
	addresses dirAddresses
	once      sync.Once
	done      chan struct{} // closed by Close
	server    *http.Server
	serving   sync.WaitGroup // the server's goroutines, one for each stream
}

func newDirServer(h http.Handler, l *limits) *dirServer {
	d := &dirServer{limits: l, streams: make(chan net.Conn, l.dirStreams+l.dirSockets), done: make(chan struct{})}
	d.server = &http.Server{
		Handler: h, ConnContext: connContext, MaxHeaderBytes: maxDirHeader,
		ReadTimeout: dirRequest, WriteTimeout: dirAnswer, IdleTimeout: dirIdle,
		ConnState: d.state,
		// What strangers can cause at will is nothing for a log.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	return d
}

// dirStream is a stream to the directory, which is counted from BEGIN_DIR on.
type dirStream struct {
	*stream.Stream
	circuit *circuitHandler // that it is on
	release func()
}

func (s *dirStream) leave() { s.release() }

// BeginDir implements stream.Handler.
func (h *circuitHandler) BeginDir(s *stream.Stream) {
	d := h.relay.dir
	if !h.dirs.enter(d.limits.circuitDirStreams) {
		s.Abort(cell.EndResource)
		return
	}
	if !d.open.enter(d.limits.dirStreams) {
		h.dirs.leave()
		s.Abort(cell.EndResource)
		return
	}
	ds := &dirStream{s, h, func() {
		h.dirs.leave()
		d.open.leave()
	}}
	// CONNECTED goes out first: the request may be here already, and its
	// answer must not overtake it.
	if s.Accept(cell.ConnectedBody{}) != nil {
		ds.release()
		return
	}
	select {
	case d.streams <- ds:
	case <-d.done:
		s.Abort(cell.EndResource)
		ds.release()
	}
}

// connContext lets a request know the stream that it came on.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if s, ok := c.(*dirStream); ok {
		return context.WithValue(ctx, dirKey{}, s)
	}
	return ctx
}

// state follows the server's goroutines. StateNew is told before they start.
func (d *dirServer) state(c net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		d.serving.Add(1)
	case http.StateClosed, http.StateHijacked:
		c.(interface{ leave() }).leave()
		d.serving.Done()
	}
}

// serve runs until ctx ends and all that it started has ended.
func (d *dirServer) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { d.server.Close() })
	defer stop()
	_ = d.server.Serve(d) // always ErrServerClosed
	d.server.Close()
	// What still waits will not be served. What comes later ends with its
	// circuit.
	for {
		select {
		case c := <-d.streams:
			c.Close()
			c.(interface{ leave() }).leave()
			continue
		default:
		}
		break
	}
	d.serving.Wait()
}

// Accept implements net.Listener.
func (d *dirServer) Accept() (net.Conn, error) {
	select {
	case s := <-d.streams:
		return s, nil
	case <-d.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. http.Server calls it once or more.
func (d *dirServer) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}

// Addr implements net.Listener.
func (d *dirServer) Addr() net.Addr { return stream.Addr("directory") }
