package relay

// Rate returns the rate that the relay keeps now.
func (r *Relay) Rate() Rate { return r.limiter.get() }

// SetRate changes the rate of a running relay, of its open connections too. Its
// errors are those of Rate.Check; then nothing has changed.
func (r *Relay) SetRate(to Rate) error {
	if err := to.Check(); err != nil {
		return err
	}
	if r.limiter.get() == to {
		return nil
	}
	r.limiter.set(to)
	r.republishNow()
	r.tally.wake()
	return nil
}
