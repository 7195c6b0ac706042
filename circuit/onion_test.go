package circuit

import "cepa/cell"

// onionNode is the part of a test's Handler that onion services need: it notes what
// it was asked, and does what its test says.
type onionNode struct {
	introduce           func(*Transit, cell.IntroduceBody)
	establishIntro      func(*Transit, cell.EstablishIntroBody)
	introWork           func(*Transit, cell.IntroWorkBody)
	establishRendezvous func(*Transit, [cell.CookieSize]byte)
	rendezvous          func(*Transit, cell.RendezvousBody)

	roles []cell.MessageCommand // what came
}

func (n *onionNode) EstablishIntro(t *Transit, b cell.EstablishIntroBody) {
	n.roles = append(n.roles, cell.EstablishIntro)
	if n.establishIntro != nil {
		n.establishIntro(t, b)
	}
}

func (n *onionNode) IntroWork(t *Transit, b cell.IntroWorkBody) {
	n.roles = append(n.roles, cell.IntroWork)
	if n.introWork != nil {
		n.introWork(t, b)
	}
}

func (n *onionNode) Introduce(t *Transit, b cell.IntroduceBody) {
	n.roles = append(n.roles, cell.Introduce)
	if n.introduce != nil {
		n.introduce(t, b)
	}
}

func (n *onionNode) EstablishRendezvous(t *Transit, cookie [cell.CookieSize]byte) {
	n.roles = append(n.roles, cell.EstablishRendezvous)
	if n.establishRendezvous != nil {
		n.establishRendezvous(t, cookie)
	}
}

func (n *onionNode) Rendezvous(t *Transit, b cell.RendezvousBody) {
	n.roles = append(n.roles, cell.Rendezvous)
	if n.rendezvous != nil {
		n.rendezvous(t, b)
	}
}
