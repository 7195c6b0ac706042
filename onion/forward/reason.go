package forward

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"

	"cepa/cell"
)

// reasonFor turns an error of a dial to a target into a reason of the wire. The client learns what a client of the target
// itself would; what this machine lacks, and what is missing at a path, is not told apart more than that.
func reasonFor(err error) cell.EndReason {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist): // a Unix socket that is not there yet
		return cell.EndRefused
	case errors.Is(err, syscall.ENETUNREACH):
		return cell.EndNetwork
	case errors.Is(err, syscall.EHOSTUNREACH):
		return cell.EndHost
	case errors.Is(err, syscall.ECONNRESET):
		return cell.EndReset
	case errors.Is(err, fs.ErrPermission): // its firewall, or the socket belongs to another user
		return cell.EndPolicy
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS),
		errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAGAIN): // EAGAIN: the backlog of a Unix socket is full
		return cell.EndResource
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return cell.EndTimeout
	default:
		return cell.EndHost
	}
}

// adviceFor says to the operator what to do about targets that cannot be reached.
func adviceFor(why cell.EndReason) string {
	switch why {
	case cell.EndRefused:
		return "nothing listens there: start the program behind this port, or correct the port"
	case cell.EndPolicy:
		return "this user may not connect to it: look at the permissions of the socket, and at the firewall"
	case cell.EndTimeout:
		return "it does not answer in time: see whether the program behind this port is overloaded"
	case cell.EndResource:
		return "this machine is out of something: raise its limit of open files, or lower the service's limits"
	default:
		return "it cannot be reached: correct the target of this port"
	}
}
