package cell

// EndReason is the reason of END. All but EndEOF are final. It is an error, so
// that it can be handed to the stream's user.
type EndReason uint8

// The reasons of END (doc/spec.md section 5).
const (
	EndEOF         EndReason = 0  // no more DATA from this side; not final
	EndDone        EndReason = 1  // both sides are finished
	EndClosed      EndReason = 2  // the side's user closed the stream
	EndNotFound    EndReason = 3  // no such name
	EndRefused     EndReason = 4  // connection refused
	EndPolicy      EndReason = 5  // the exit does not allow this destination
	EndTimeout     EndReason = 6  // the destination did not answer
	EndHost        EndReason = 7  // host unreachable
	EndNetwork     EndReason = 8  // network unreachable
	EndReset       EndReason = 9  // the destination reset the connection
	EndResource    EndReason = 10 // the relay is out of something
	EndInternal    EndReason = 11 // the relay failed
	EndNoDirectory EndReason = 12 // the relay serves no directory
)

// Error implements error.
func (r EndReason) Error() string {
	switch r {
	case EndEOF:
		return "end of stream"
	case EndDone:
		return "stream finished"
	case EndClosed:
		return "stream closed by the other side"
	case EndNotFound:
		return "host name not found"
	case EndRefused:
		return "connection refused"
	case EndPolicy:
		return "destination not allowed by the exit's policy"
	case EndTimeout:
		return "destination did not answer in time"
	case EndHost:
		return "host unreachable"
	case EndNetwork:
		return "network unreachable"
	case EndReset:
		return "connection reset by the destination"
	case EndResource:
		return "relay out of resources"
	case EndInternal:
		return "relay failed"
	case EndNoDirectory:
		return "relay serves no directory"
	}
	return "stream ended"
}

// ParseEnd reads the payload of END.
func ParseEnd(p []byte) (EndReason, error) {
	if len(p) != 1 || p[0] > byte(EndNoDirectory) {
		return 0, &FormatError{"END", "reason"}
	}
	return EndReason(p[0]), nil
}
