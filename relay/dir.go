package relay

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"cepa/cell"
	"cepa/stream"
)

// dirBacklog is how many directory streams may wait for the server.
const dirBacklog = 64

// dirServer serves the consensus over BEGIN_DIR streams.
type dirServer struct {
	streams chan net.Conn
	once    sync.Once
	done    chan struct{} // closed by Close
	server  *http.Server
}

func newDirServer(h http.Handler) *dirServer {
	return &dirServer{
		streams: make(chan net.Conn, dirBacklog), done: make(chan struct{}),
		server: &http.Server{
			Handler: h, MaxHeaderBytes: 64 << 10,
			ReadHeaderTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		},
	}
}

// offer hands a stream to the server, unless too many wait. CONNECTED goes out
// first: the request may be here already, and its answer must not overtake it.
func (d *dirServer) offer(s *stream.Stream) {
	if s.Accept(cell.ConnectedBody{}) != nil {
		return
	}
	select {
	case d.streams <- s:
	default:
		s.Abort(cell.EndResource)
	}
}

// serve runs until ctx ends.
func (d *dirServer) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { d.server.Close() })
	defer stop()
	d.server.Serve(d)
	// What still waits will not be served.
	for {
		select {
		case s := <-d.streams:
			s.Close()
		default:
			return
		}
	}
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
