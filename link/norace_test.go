//go:build !race

package link

// raceDetector tells whether the tests run under it.
const raceDetector = false
