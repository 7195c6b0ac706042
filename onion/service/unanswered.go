package service

import "net"

// AcceptUnanswered is Accept for who must ask somebody else first, such as a program behind a port: the client is not told yet that
// it is connected. Nothing can be written before the caller has called Accept of the Conn's Stream; to refuse the client, it calls
// Abort with the reason. What the client has sent already can be read.
func (s *Service) AcceptUnanswered() (*Conn, error) {
	if s.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	select {
	case c := <-s.backlog:
		s.counts.streams.Add(1)
		return c, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}
